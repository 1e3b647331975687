"""Private keys on the command line: opened here, read by the decryptor alone.

A key is written as ocicrypt's programs have it: FILE, FILE:pass=PASSWORD, FILE:file=PASSWORDFILE or FILE:fd=NUMBER.
What goes to the decryptor are descriptors; neither a key's bytes nor a password out of a file are ever read here.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bulkhead import layers
from bulkhead.errors import BulkheadError, InvalidArgument, NotFound, PermissionDenied

HELP = (
    "a private key (or its certificate) for this use alone: FILE, FILE:pass=PASSWORD, FILE:file=PASSWORDFILE or "
    "FILE:fd=NUMBER; may be repeated"
)
_WAYS = ("pass=", "file=", "fd=")


def add(parser: argparse.ArgumentParser) -> None:
    """Add `--key`."""
    parser.add_argument("--key", action="append", default=[], metavar="FILE", help=HELP)


@contextmanager
def lent(socket: Path, texts: Sequence[str]) -> Iterator[str]:
    """Lend keys to the decryptor for the block and yield the grant's id; without keys a grant of none.

    PermissionDenied for others than root; InvalidArgument if a file holds no key that can be used.
    """
    if os.geteuid() != 0:
        raise PermissionDenied("only root may lend keys to the decryptor, or take an image out of its encryption")
    with ExitStack() as held:
        keys = [_open(text, held) for text in texts]
        grant = held.enter_context(layers.Grant(str(socket), keys))
        bad = [f"{key.file}: {key.error}" for key in grant.keys if key.error]
        if bad:
            raise InvalidArgument("--key: " + "; ".join(bad))
        yield grant.id


def _open(text: str, held: ExitStack) -> tuple[str, int, int | None]:
    """Return the key's name, its descriptor, and that of its password if it has one."""
    path, password = text, ""
    if not os.path.exists(text) and ":" in text:
        path, _, password = text.rpartition(":")
    key = _file(path, "--key", held)
    if not password:
        return os.path.basename(path), key, None
    return os.path.basename(path), key, _password(password, held)


def _password(text: str, held: ExitStack) -> int:
    way = next((way for way in _WAYS if text.startswith(way)), "")
    value = text.removeprefix(way)
    if way == "file=":
        return _file(value, "--key: password", held)
    if way == "fd=":
        try:
            fd = os.dup(int(value))
        except (ValueError, OSError) as error:
            raise InvalidArgument(f"--key: fd={value[:20]!r} is no descriptor that is open") from error
        held.callback(_close, fd)
        return fd
    fd = os.memfd_create("password", os.MFD_CLOEXEC)
    held.callback(_close, fd)
    os.write(fd, value.encode())
    return fd


def _file(path: str, what: str, held: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{what}: {path}: {error.strerror}") from error
    except OSError as error:
        raise PermissionDenied(f"{what}: {path}: {error.strerror}") from error
    held.callback(_close, fd)
    return fd


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def error_of(error: BulkheadError) -> str:
    """Return what to print: a refusal for want of a key without what the services put before it."""
    text = str(error)
    begin = text.find("you are not authorized to use this image")
    return text[begin:] if begin > 0 else text
