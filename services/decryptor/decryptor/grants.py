"""Keys lent by root for one use: each lives as long as the connection that brought it."""

import contextlib
import errno
import os
import secrets
import select
import stat
import threading
from collections.abc import Iterator, Sequence

from bulkhead.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from decryptor.files import FILE_LIMIT, KeyFile
from decryptor.keyring import PASSWORD_SUFFIX, Keyring

#: Grants at one time, and keys in one (a message carries 16 descriptors).
LIMIT, KEYS_LIMIT = 64, 8
#: Seconds that a key coming out of a pipe may take.
_PIPE_WAIT = 5.0


class Grants:
    """The grants that are alive, by id."""

    def __init__(self) -> None:
        self._rings: dict[str, Keyring] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lend(self, ring: Keyring) -> Iterator[str]:
        """Have a ring usable under an id, which nobody can guess, inside the block."""
        ident = secrets.token_hex(16)
        with self._lock:
            if len(self._rings) >= LIMIT:
                raise ResourceExhausted(f"{LIMIT} grants are alive, no more are allowed")
            self._rings[ident] = ring
        try:
            yield ident
        finally:
            with self._lock:
                del self._rings[ident]

    def ring(self, ident: str) -> Keyring:
        """Return a grant's keys; FailedPrecondition once its giver has hung up."""
        with self._lock:
            ring = self._rings.get(ident)
        if ring is None:
            raise FailedPrecondition("the grant of keys is over: who gave it has hung up")
        return ring


def read(order: object, fds: Sequence[int]) -> Keyring:
    """Make a ring of the descriptors of a grant; InvalidArgument if order and descriptors do not fit.

    A descriptor is read from its beginning if it is a file, which stays the giver's.
    """
    if not isinstance(order, list) or len(order) > KEYS_LIMIT or not all(isinstance(each, dict) for each in order):
        raise InvalidArgument(f"grant: keys is to be a list of at most {KEYS_LIMIT} objects")
    files, left = list[KeyFile](), list(fds)
    for each in order:
        name = str(each.get("name", ""))[:256] or "key"
        wanted = [name, name + PASSWORD_SUFFIX] if each.get("password") else [name]
        if len(left) < len(wanted):
            raise InvalidArgument("grant: fewer descriptors than keys and passwords")
        files += [_read(file, left.pop(0)) for file in wanted]
    if left:
        raise InvalidArgument("grant: more descriptors than keys and passwords")
    return Keyring(files)


def _read(name: str, fd: int) -> KeyFile:
    try:
        data = _contents(fd)
    except TimeoutError:
        return KeyFile(name, error=f"cannot be read: its writer was silent for {_PIPE_WAIT:g} s")
    except OSError as error:
        return KeyFile(name, error=f"cannot be read: {error.strerror}")
    if len(data) > FILE_LIMIT:
        return KeyFile(name, error=f"larger than {FILE_LIMIT} bytes")
    return KeyFile(name, data, "" if data else "empty file")


def _contents(fd: int) -> bytes:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.pread(fd, FILE_LIMIT + 1, 0)
    if not stat.S_ISFIFO(mode):
        raise OSError(errno.EINVAL, "neither a file nor a pipe")
    # A pipe, as the shell's <(…) makes one.
    data = b""
    while len(data) <= FILE_LIMIT:
        if not select.select([fd], [], [], _PIPE_WAIT)[0]:
            raise TimeoutError
        more = os.read(fd, FILE_LIMIT + 1 - len(data))
        if not more:
            break
        data += more
    return data
