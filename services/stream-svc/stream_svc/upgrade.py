"""What a request asks for: kind, ticket, transport and subprotocol, decided before anything is done. No I/O.

The rules are those of the kubelet's streaming library (k8s.io/cri-streaming, k8s.io/streaming): SPDY clients list their
protocols in X-Stream-Protocol-Version, WebSocket clients in Sec-WebSocket-Protocol, the first one that we know wins.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

Headers = Sequence[tuple[bytes, bytes]]

PORT_FORWARD = "portforward.k8s.io"
TUNNEL_PREFIX = "SPDY/3.1+"
_COMMAND_SPDY = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
_COMMAND_WEBSOCKET = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)
_FORWARD_WEBSOCKET = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
#: First part of the path -> kind of ticket it may redeem.
KINDS = {"exec": "exec", "attach": "attach", "portforward": "port_forward"}
_TOKEN = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32,128}")
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Refused(Exception):
    """The request gets an HTTP answer instead of an upgrade."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True)
class Request:
    """A request's head; header names are in lower case."""

    method: str
    target: str
    headers: Headers = ()

    def values(self, name: str) -> list[str]:
        """Return the comma-separated elements of all headers of that name."""
        texts = [value.decode("latin-1") for key, value in self.headers if key.decode("latin-1").lower() == name]
        return [element.strip() for text in texts for element in text.split(",") if element.strip()]


@dataclass(frozen=True)
class Upgrade:
    """What was asked for, and the headers of the answer 101."""

    #: "exec", "attach" or "port_forward".
    kind: str
    token: str
    #: "spdy", "websocket", or "tunnel" (SPDY inside WebSocket messages).
    transport: str
    #: The subprotocol without prefix; "" where the client named none.
    protocol: str
    headers: Headers = field(default=(), compare=False)

    @property
    def version(self) -> int:
        """Version of the remote command protocol: 1 for the unversioned ones."""
        match = re.match(r"v(\d+)\.", self.protocol)
        return int(match[1]) if match else 1

    @property
    def base64(self) -> bool:
        """Whether messages carry base64."""
        return "base64." in self.protocol


def plan(request: Request) -> Upgrade:
    """Return what the request asks for; raises Refused with the HTTP answer for anything else."""
    kind, token = _route(request.target)
    if request.method not in ("GET", "POST"):
        raise Refused(405, f"method {request.method} is not GET or POST", [(b"Allow", b"GET, POST")])
    wanted = [value.lower() for value in request.values("upgrade")]
    if "upgrade" not in [value.lower() for value in request.values("connection")] or not wanted:
        raise Refused(400, "unable to upgrade: missing upgrade headers in request")
    if "websocket" in wanted:
        return _websocket(request, kind, token)
    if "spdy/3.1" in wanted:
        return _spdy(request, kind, token)
    raise Refused(400, f"unable to upgrade to {', '.join(wanted)[:100]}: SPDY/3.1 and websocket are supported")


def _route(target: str) -> tuple[str, str]:
    parts = target.partition("?")[0].split("/")
    # The token becomes part of a path, so nothing but hex digits in the fixed form may pass.
    if len(parts) == 3 and not parts[0] and parts[1] in KINDS and _TOKEN.fullmatch(parts[2]):
        return KINDS[parts[1]], parts[2]
    raise Refused(404, "not found: unknown path, or a ticket that was used or has expired")


def _spdy(request: Request, kind: str, token: str) -> Upgrade:
    asked = request.values("x-stream-protocol-version")
    if not asked:
        raise Refused(400, "unable to upgrade: header X-Stream-Protocol-Version does not exist in request")
    known = (PORT_FORWARD,) if kind == "port_forward" else _COMMAND_SPDY
    protocol = next((name for name in asked if name in known), None)
    if protocol is None:
        accepted = [(b"X-Accepted-Stream-Protocol-Versions", name.encode()) for name in known]
        raise Refused(
            403, f"unable to upgrade: client supports {_list(asked)}, server accepts {_list(known)}", accepted
        )
    headers = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"SPDY/3.1"),
        (b"X-Stream-Protocol-Version", protocol.encode()),
    ]
    return Upgrade(kind, token, "spdy", protocol, headers)


def _websocket(request: Request, kind: str, token: str) -> Upgrade:
    if request.method != "GET":
        raise Refused(405, "a WebSocket is opened with GET", [(b"Allow", b"GET")])
    if request.values("sec-websocket-version") != ["13"]:
        raise Refused(426, "WebSocket version 13 is supported", [(b"Sec-WebSocket-Version", b"13")])
    headers = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Accept", _accept(request.values("sec-websocket-key"))),
    ]
    asked = request.values("sec-websocket-protocol")
    if not asked:
        return Upgrade(kind, token, "websocket", "", headers)
    known = _FORWARD_WEBSOCKET if kind == "port_forward" else _COMMAND_WEBSOCKET
    tunnelled = [TUNNEL_PREFIX + name for name in ((PORT_FORWARD,) if kind == "port_forward" else _COMMAND_SPDY)]
    protocol = next((name for name in asked if name in known or name in tunnelled), None)
    if protocol is None:
        supported = _list([*known, *tunnelled])
        raise Refused(403, f"requested protocols are not supported: {_list(asked)}; supported: {supported}")
    headers.append((b"Sec-WebSocket-Protocol", protocol.encode()))
    transport = "tunnel" if protocol in tunnelled else "websocket"
    return Upgrade(kind, token, transport, protocol.removeprefix(TUNNEL_PREFIX), headers)


def _accept(keys: Sequence[str]) -> bytes:
    """Return Sec-WebSocket-Accept for the client's key (RFC 6455, section 4.2.2)."""
    try:
        if len(keys) != 1 or len(base64.b64decode(keys[0], validate=True)) != 16:
            raise Refused(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    except binascii.Error as error:
        raise Refused(400, f"Sec-WebSocket-Key is not base64: {error}") from error
    digest = hashlib.sha1(keys[0].encode() + _WEBSOCKET_GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)[:300]
