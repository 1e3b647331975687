"""The key files: where they are and how they are read, without trusting what the directory holds."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: A key file larger than this is refused: keys, rings and certificates are a few KiB.
FILE_LIMIT = 1024 * 1024
COUNT_LIMIT = 1024
DEPTH_LIMIT = 8

CREDENTIAL = "keys"
#: What the unit calls a second credential: `..data` of a mounted Secret, since LoadCredential= follows no links.
MOUNTED = "mounted"


@dataclass(frozen=True)
class KeyFile:
    """One file as read: its name below the key directory and its bytes, or why there are none."""

    name: str
    data: bytes = b""
    error: str = ""

    def __repr__(self) -> str:
        return f"KeyFile({self.name!r}, {len(self.data)} bytes, error={self.error!r})"


def sources(option: str | None, environ: Mapping[str, str], configured: str) -> list[tuple[Path, str]]:
    """Return where keys are looked for, as directories with the prefix that names must have there.

    The command line's directory wins; else the credentials that systemd or the launcher made: `keys/` as a
    directory, or `keys_<file>` and `mounted_<file>`, into which LoadCredential= flattens directories; else the
    configured directory.
    """
    if option:
        return [(Path(option), "")]
    if credentials := environ.get("CREDENTIALS_DIRECTORY"):
        made = Path(credentials)
        return [(made / CREDENTIAL, ""), (made, f"{CREDENTIAL}_"), (made, f"{MOUNTED}_")]
    return [(Path(configured), "")]


def read_all(places: list[tuple[Path, str]]) -> list[KeyFile]:
    """Read every key file, at most COUNT_LIMIT; what cannot be read is returned with its error."""
    found: list[KeyFile] = []
    for directory, prefix in places:
        for name, path in _walk(directory, prefix):
            if len(found) >= COUNT_LIMIT:
                found.append(KeyFile(str(directory), error=f"more than {COUNT_LIMIT} files; the rest is ignored"))
                return found
            found.append(_read(name, path))
    return found


def signature(places: list[tuple[Path, str]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what tells one state of the key files from another: names, and what stat says of the file behind each."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for directory, prefix in places:
        for name, path in _walk(directory, prefix):
            try:
                status = path.stat()
                seen: tuple[int, ...] = (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                )
            except OSError as error:
                seen = (error.errno or -1,)
            found.append((name, seen))
            if len(found) > COUNT_LIMIT:
                return tuple(found)
    return tuple(found)


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each file, in order of names; a missing directory holds none.

    Names that start with two dots are how Kubernetes swaps the contents of a mounted Secret: the files proper are
    links through `..data`, so those directories themselves are passed over.
    """
    pending, seen = [(directory, "", 0)], set[tuple[int, int]]()
    while pending:
        here, below, depth = pending.pop(0)
        try:
            status = here.stat()
            names = sorted(os.listdir(here)) if stat.S_ISDIR(status.st_mode) else [""]
        except FileNotFoundError:
            continue
        except OSError:
            yield below or str(here), here
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path, label = (here / name, f"{below}{name}") if name else (here, here.name)
            if name.startswith("..") or not label.startswith(prefix):
                continue
            # Unlike Path's methods, these do not mind a link into a directory that is closed to this user.
            if os.path.isdir(path):
                if not prefix and depth < DEPTH_LIMIT:
                    pending.append((path, f"{label}/", depth + 1))
                continue
            yield label.removeprefix(prefix), path


def _read(name: str, path: Path) -> KeyFile:
    try:
        # Non-blocking, or a FIFO put there would hang the service.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if os.path.islink(path):
            return KeyFile(name, error=f"symbolic link that cannot be followed: {error.strerror}")
        return KeyFile(name, error=f"cannot be opened: {error.strerror}")
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return KeyFile(name, error="not a regular file")
        try:
            data = file.read(FILE_LIMIT + 1) or b""
        except OSError as error:
            return KeyFile(name, error=f"cannot be read: {error.strerror}")
    if len(data) > FILE_LIMIT:
        return KeyFile(name, error=f"larger than {FILE_LIMIT} bytes")
    return KeyFile(name, data, "" if data else "empty file")
