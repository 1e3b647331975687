"""How stdio is named in Task.Create: `cri-log://`, `cri-stdin://`, `file://`, or the path of a FIFO."""

from typing import NamedTuple
from urllib.parse import quote, unquote

from bulkhead.errors import InvalidArgument

#: containerd's max_container_log_line_size.
LINE_SIZE = 16384


class CriLog(NamedTuple):
    """Output goes to a log file in CRI format; an empty path reads and drops it."""

    path: str
    max_line_size: int = LINE_SIZE


class CriStdin(NamedTuple):
    """Standard input is fed by attach sessions; with once it ends with the first of them."""

    once: bool


class File(NamedTuple):
    """Output is appended to a file as it comes."""

    path: str


class Fifo(NamedTuple):
    """A named pipe that the caller has made and reads or writes."""

    path: str


Stdio = CriLog | CriStdin | File | Fifo | None


def cri_log(path: str, max_line_size: int = LINE_SIZE) -> str:
    """Return the URI of a CRI log file, or of output to be dropped if path is empty."""
    return f"cri-log://{quote(path)}?max_line_size={max_line_size}"


def cri_stdin(*, once: bool) -> str:
    """Return the URI of standard input that attach sessions feed."""
    return f"cri-stdin://?once={int(once)}"


def parse(text: str) -> Stdio:
    """Return what a stdio string of Task.Create or Exec means; None if it is empty."""
    if not text:
        return None
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Fifo(text)
    # Not urllib's parser: these URIs are our own, and each pod pays for what it runs.
    path, _, query = rest.partition("?")
    if "%" in path:
        path = unquote(path)
    if scheme == "cri-log":
        return CriLog(path, _integer(_value(query, "max_line_size") or str(LINE_SIZE), text))
    if scheme == "cri-stdin":
        return CriStdin(_value(query, "once") not in ("0", "false", ""))
    if scheme == "file":
        return File(path)
    if scheme == "fifo":
        return Fifo(path)
    raise InvalidArgument(f"stdio {text!r}: scheme {scheme!r} is not one of cri-log, cri-stdin, file, fifo")


def _value(query: str, key: str) -> str:
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        if name == key:
            return value
    return ""


def _integer(text: str, uri: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidArgument(f"stdio {uri!r}: max_line_size is not a number") from error
