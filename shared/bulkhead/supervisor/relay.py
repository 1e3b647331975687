"""The services' output on its way to the supervisor's own: whole lines, each of them with its origin."""

import json
import re
import time
from collections.abc import Callable

_OURS = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
#: A line longer than this is handed on in pieces.
LINE_LIMIT = 64 * 1024


class Relay:
    """Cuts one service's bytes into lines; a line that its logging did not make gets time and origin added."""

    def __init__(self, name: str, style: str, write: Callable[[bytes], None]) -> None:
        self._name, self._style, self._write = name, style, write
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Hand on the lines that are complete, and return them."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._write(self._dressed(line) + b"\n")
        return [line.decode(errors="replace") for line in lines]

    def end(self) -> list[str]:
        """Hand on what came without a line feed, after the last byte."""
        return self.feed(b"\n") if self._rest else []

    def _dressed(self, line: bytes) -> bytes:
        own = line.startswith(b"{") if self._style == "json" else _OURS.match(line)
        if own:
            return line
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        text = line.decode(errors="replace")
        if self._style == "json":
            entry = {"time": stamp, "level": "info", "logger": self._name, "msg": text}
            return json.dumps(entry, ensure_ascii=False).encode()
        return f"{stamp} info    {self._name}: {text}".encode()
