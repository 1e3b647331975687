"""An in-process registry for the behaviours that no real one shows on demand, and a stand-in for the unpack helper."""

import http.server
import io
import json
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import DataLoss
from image_svc.decompress import tar_stream
from image_svc.oci import digests
from image_svc.unpack.client import Usage
from image_svc.unpack.protocol import Limits, Unpacked
from support.fake_uploads import Uploads
from support.images import MEDIA, Image, digest


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    #: The client's port, one for each connection.
    port: int = 0
    #: When, to tell the order across registries.
    at: int = field(default_factory=time.monotonic_ns)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the registry holds, unless a rule answers first."""

    protocol_version = "HTTP/1.1"
    registry: "FakeRegistry"
    timeout = 60
    #: A body after its head would else wait for the client's delayed acknowledgement, 40 ms an answer.
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Answer one request."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers, self.client_address[1])
        self.registry.seen.append(seen)
        for part, rule in list(self.registry.rules):
            if part in self.path and rule(self):
                return
        self.registry.serve(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815 # names of the base class

    def read(self, limit: int | None = None) -> bytes:
        """Read the request's body; with a limit only so much of it, and the connection breaks."""
        length = int(self.headers.get("Content-Length", "0"))
        if limit is None:
            return self.rfile.read(length)
        self.break_off()
        return self.rfile.read(min(limit, length))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Send an answer; underscores in header names become dashes."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, such as the beginning of TLS, with a status line, as other servers do."""
        self.wfile.write(f"HTTP/1.1 {code} {message}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        self.close_connection = True

    def break_off(self) -> bool:
        """Close the connection where it stands."""
        self.close_connection = True
        return True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Rule = Callable[[Handler], bool]


@dataclass
class FakeRegistry:
    """Holds manifests and blobs; `rules` are pairs of a part of the path and a function that may answer."""

    address: str = ""
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    rules: list[tuple[str, Rule]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    uploads: Uploads = field(default_factory=Uploads)

    def push(self, repository: str, tag: str, image: Image) -> str:
        """Hold an image and return the digest of its manifest."""
        config, layers = image.blobs()
        for blob in (config, *layers):
            self.blobs[digest(blob)] = blob
        return self.push_manifest(repository, tag, image.manifest(), MEDIA[image.family]["manifest"])

    def push_manifest(self, repository: str, tag: str, body: bytes | dict[str, Any], media_type: str) -> str:
        """Hold a manifest or index as it is and return its digest."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        for name in (tag, digest(data)):
            self.manifests[f"{repository}/manifests/{name}"] = (data, media_type)
        return digest(data)

    def on(self, part: str, rule: Rule) -> None:
        """Add a rule that comes before those there are."""
        self.rules.insert(0, (part, rule))

    def once(self, part: str, rule: Rule) -> None:
        """Add a rule that goes away when it has answered."""

        def wrapped(handler: Handler) -> bool:
            try:
                self.rules.remove((part, wrapped))
            except ValueError:
                return False  # another request was first
            return rule(handler)

        self.on(part, wrapped)

    def asked(self, part: str) -> list[Seen]:
        """Return the requests whose path holds a text."""
        return [each for each in self.seen if part in each.path]

    def serve(self, handler: Handler) -> None:
        """Answer as a sound registry does, ranges and uploads included."""
        if handler.command not in ("GET", "HEAD") or "/blobs/uploads/" in handler.path:
            if not self.uploads.serve(handler, self.blobs, self.manifests):
                handler.reply(405)
            return
        path = handler.path.partition("?")[0].removeprefix("/v2/")
        name = path.rpartition("/")[2]
        if "/manifests/" in path and path in self.manifests:
            data, kind = self.manifests[path]
            handler.reply(200, data, Content_Type=kind, Docker_Content_Digest=digest(data))
        elif "/blobs/" in path and name in self.blobs:
            data = self.blobs[name]
            asked = handler.headers.get("Range", "")
            if asked:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                content = f"bytes {start}-{len(data) - 1}/{len(data)}"
                handler.reply(206, data[start:], Content_Range=content)
            else:
                handler.reply(200, data)
        else:
            body = {"errors": [{"code": "NAME_UNKNOWN", "message": "no such thing here"}]}
            handler.reply(404, json.dumps(body).encode())


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the game."""


@contextmanager
def fake_registry(tls: ssl.SSLContext | None = None) -> Iterator[FakeRegistry]:
    """Run a fake registry on a loopback port, over TLS if a context is given."""
    made = FakeRegistry()
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"registry": made}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


class FakeUnpack:
    """Stands in for the unpack helper: reads the tar, keeps the names, refuses what is no tar."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.trees: dict[str, list[str]] = {}
        self.settled: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def unpack(self, name: str, stream: int, limits: Limits, algorithm: str = "sha256") -> Unpacked:
        """Read the stream to its end."""
        self.calls.append(("unpack", name))
        with open(stream, "rb", closefd=False) as file:
            blob = file.read()
        data = b"".join(tar_stream([blob], "layer"))
        self.gate.wait(30)
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                self.trees[name] = archive.getnames()
        except tarfile.TarError as error:
            raise DataLoss(f"not a tar: {error}") from error
        count = len(self.trees[name])
        return Unpacked(count, len(data), count, len(data), 0, 0, 0, 0, digests.of(data, algorithm))

    def settle(self, chain: Sequence[str]) -> int:
        """Settle what is not, all of which was unpacked before."""
        self.calls.append(("settle", *chain))
        assert set(chain) <= set(self.trees)
        self.settled.extend(name for name in chain if name not in self.settled)
        return 0

    def sync(self) -> None:
        """Note the call."""
        self.calls.append(("sync",))

    def remove(self, name: str) -> None:
        """Forget a snapshot."""
        self.calls.append(("remove", name))
        self.trees.pop(name, None)

    def prepare(self, name: str, chain: Sequence[str]) -> None:
        """Make a writable snapshot."""
        self.calls.append(("prepare", name, *chain))
        self.trees[name] = []
        self.settled.append(name)

    def usages(self, names: Sequence[str]) -> dict[str, Usage]:
        """Return sizes that show they came from here."""
        return {name: Usage(4096, 1) for name in names if name in self.trees}

    def list(self) -> list[tuple[str, bool]]:
        """Return what is there."""
        return [(name, name in self.settled) for name in self.trees]

    def ping(self, *, timeout: float = 5.0) -> None:
        """Be there."""
