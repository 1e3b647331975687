"""The Streams service: tells sandbox-svc where clients reach this process, and which sessions are open."""

import time

import grpc

from bulkhead.proto import streams_pb2, streams_pb2_grpc
from stream_svc.sessions import Entry, Table


class StreamsService(streams_pb2_grpc.StreamsServicer):
    """Answers from memory."""

    def __init__(self, base_url: str, table: Table) -> None:
        self._base_url, self._table = base_url, table

    def Address(
        self, request: streams_pb2.AddressRequest, context: grpc.ServicerContext
    ) -> streams_pb2.AddressResponse:
        """Return the URL in front of `/exec/<ticket>`."""
        return streams_pb2.AddressResponse(base_url=self._base_url)

    def Sessions(
        self, request: streams_pb2.SessionsRequest, context: grpc.ServicerContext
    ) -> streams_pb2.SessionsResponse:
        """Return the open sessions, oldest first."""
        # list() of a dict's values is atomic, so the event loop's thread may change the table meanwhile.
        return streams_pb2.SessionsResponse(sessions=[_session(entry) for entry in list(self._table.open.values())])


def _session(entry: Entry) -> streams_pb2.Session:
    received, sent = entry.count()
    return streams_pb2.Session(
        number=entry.number,
        kind=entry.kind,
        transport=entry.transport,
        protocol=entry.protocol,
        shim=entry.shim,
        peer=entry.peer,
        age_ms=int((time.monotonic() - entry.began) * 1000),
        received=received,
        sent=sent,
    )
