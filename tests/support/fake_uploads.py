"""Uploads to the in-process registry, as the OCI distribution specification has them."""

import itertools
import urllib.parse
from dataclasses import dataclass, field
from email.message import Message
from typing import Protocol

from support.images import digest


class Answers(Protocol):
    """What serving an upload needs of a request's handler."""

    command: str
    path: str
    headers: "Message[str, str]"

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        """Send an answer."""
        ...

    def read(self, limit: int | None = None) -> bytes:
        """Read the request's body, or so much of it."""
        ...


@dataclass
class Uploads:
    """Uploads that are open, and what each request carried; `cut` cuts the body of one that comes next, in bytes."""

    opened: dict[str, bytearray] = field(default_factory=dict)
    #: Method and bytes of each request with a body.
    bodies: list[tuple[str, int]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    #: Repositories from which blobs may be mounted, and what they hold.
    mountable: dict[str, set[str]] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def serve(self, handler: Answers, blobs: dict[str, bytes], manifests: dict[str, tuple[bytes, str]]) -> bool:
        """Answer a request that changes something; False for any other."""
        path, _, query = handler.path.partition("?")
        asked = dict(urllib.parse.parse_qsl(query))
        if handler.command == "PUT" and "/manifests/" in path:
            data = handler.read()
            kind = handler.headers.get("Content-Type", "")
            repository = path.removeprefix("/v2/").rpartition("/")[0]
            for name in (path.rpartition("/")[2], digest(data)):
                manifests[f"{repository}/{name}"] = (data, kind)
            return handler.reply(201, Docker_Content_Digest=digest(data))
        if "/blobs/uploads/" not in path:
            return False
        if handler.command == "POST":
            handler.read()
            wanted = asked.get("mount", "")
            if wanted in self.mountable.get(asked.get("from", ""), ()):
                return handler.reply(201, Docker_Content_Digest=wanted)
            number = str(next(self._numbers))
            self.opened[number] = bytearray()
            return handler.reply(202, Location=f"{path}{number}?state=a%2Fb", Range="0-0")
        return self._go_on(handler, path, asked.get("digest", ""), blobs)

    def _go_on(self, handler: Answers, path: str, wanted: str, blobs: dict[str, bytes]) -> bool:
        kept = self.opened.get(path.rpartition("/")[2])
        if kept is None:
            handler.read()
            return handler.reply(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}')
        if handler.command in ("PATCH", "PUT"):
            asked = handler.headers.get("Content-Range", "")
            if asked and int(asked.partition("-")[0]) != len(kept):
                handler.read()
                return handler.reply(416, Range=f"0-{len(kept) - 1}")
            limit = self.cut.pop(0) if self.cut else None
            data = handler.read(limit)
            kept += data
            self.bodies.append((handler.command, len(data)))
            if limit is not None:
                return True
        if handler.command == "PUT":
            if digest(bytes(kept)) != wanted:
                return handler.reply(400, b'{"errors":[{"code":"DIGEST_INVALID"}]}')
            blobs[wanted] = bytes(kept)
            return handler.reply(201, Docker_Content_Digest=wanted)
        status = 202 if handler.command == "PATCH" else 204
        return handler.reply(status, Location=f"{path}?state=c", Range=f"0-{max(len(kept) - 1, 0)}")
