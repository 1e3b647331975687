"""One-time tickets for Exec, Attach and PortForward: registered with the pod's shim, redeemed there by stream-svc."""

import secrets
from pathlib import Path

from bulkhead import paths, rpc
from bulkhead.proto import shim_pb2, streams_pb2, streams_pb2_grpc
from sandbox_svc.task.link import Link

SERVICE = "stream-svc"
#: Seconds a client has to connect to the URL it was given.
TICKET_TTL = 60.0


class Streams:
    """Where clients reach stream-svc, and the making of tickets."""

    def __init__(self, state: Path) -> None:
        self._channel = rpc.channel(str(paths.service_socket(state, SERVICE)))
        self._stub = streams_pb2_grpc.StreamsStub(self._channel)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def url(self, kind: str, link: Link, ticket: shim_pb2.AddTicketRequest) -> str:
        """Register a ticket with the pod's shim and return the URL that redeems it; kind is the path's first part."""
        base = self._address()
        ticket.token = f"{Path(link.binding.directory).name}-{secrets.token_hex(24)}"
        ticket.ttl_ms = int(TICKET_TTL * 1000)
        link.ours_call("AddTicket", ticket, shim_pb2.AddTicketResponse)
        return f"{base}/{kind}/{ticket.token}"

    def _address(self) -> str:
        """Return stream-svc's base URL, asked anew each time: its port may change when it restarts."""
        answer = rpc.call(self._stub.Address, streams_pb2.AddressRequest(), service=SERVICE, timeout=10.0)
        return str(answer.base_url).rstrip("/")
