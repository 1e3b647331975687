"""The one HTTP request of a connection, parsed and answered with h11; what follows the head is left untouched."""

import asyncio
from http import HTTPStatus

import h11

from stream_svc.upgrade import Headers, Refused, Request

#: Bytes of request line and headers together. Go's own limit is 1 MiB; proxies in front of a kubelet send a few KiB.
HEAD_LIMIT = 32 * 1024
_READ = 16 * 1024


class Head:
    """Reads one request and writes one answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._method = b""

    async def read(self) -> Request:
        """Return the request; Refused if it is no HTTP/1.1, EOFError if the client sent nothing."""
        received = False
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Refused(error.error_status_hint, f"bad request: {error}") from error
            if isinstance(event, h11.Request):
                self._method = event.method
                return Request(event.method.decode(), event.target.decode(), list(event.headers))
            if event is not h11.NEED_DATA:
                raise EOFError("the client closed the connection before it had asked for anything")
            data = await self._reader.read(_READ)
            if not data and not received:
                raise EOFError("the client closed the connection without a word")
            received = True
            self._http.receive_data(data)

    def settle(self) -> None:
        """Make sure that the request is over and what follows it is the new protocol; Refused if it has a body."""
        try:
            over = isinstance(self._http.next_event(), h11.EndOfMessage) and self._http.next_event() is h11.PAUSED
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, f"bad request: {error}") from error
        if not over:
            raise Refused(400, "unable to upgrade: the request has a body")

    def switch(self, headers: Headers) -> bytes:
        """Answer 101 and return what the client has already sent of the new protocol."""
        answer = h11.InformationalResponse(status_code=101, headers=list(headers), reason=b"Switching Protocols")
        self._writer.write(self._http.send(answer))
        return self._http.trailing_data[0]

    def refuse(self, refused: Refused) -> None:
        """Answer with an error and its reason as text; the connection ends after it."""
        body = str(refused).encode(errors="replace")[:4000] + b"\n"
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Connection", b"close"),
            *refused.headers,
        ]
        reason = HTTPStatus(refused.status).phrase.encode()
        self._writer.write(self._http.send(h11.Response(status_code=refused.status, headers=headers, reason=reason)))
        # The answer to HEAD is a head; h11 minds.
        if self._method != b"HEAD":
            self._writer.write(self._http.send(h11.Data(data=body)))
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
