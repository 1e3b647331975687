"""What systemd's LoadCredential= refuses in a key directory: it would start no decryptor and name no file.

The rules are those of systemd.exec(5) and of its sources: all files of a directory and of those below it, but for links
and for names that begin with a dot; names of printable ASCII without a colon; 1 MiB in all.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

#: Bytes of all credentials of a service, their names included, and of one name.
TOTAL_LIMIT, NAME_LIMIT = 1 << 20, 255
#: The credentials of the decryptor's unit, and where each is below the key directory.
CREDENTIALS = {"keys": "", "mounted": "..data"}


def complaints(directory: Path) -> list[str]:
    """Return one line for each key file that systemd does not hand over, and one if all together are too large."""
    found, total = [], 0
    for credential, below in CREDENTIALS.items():
        for path, name, size in _walk(directory / below, credential):
            total += len(os.fsencode(name)) + size
            if not name.isascii() or not name.isprintable() or ":" in name:
                found.append(f"key file {str(path)!a}: systemd takes names of printable ASCII without ':'; rename it")
            elif len(name) > NAME_LIMIT:
                found.append(f"key file {str(path)!a}: its credential's name has more than {NAME_LIMIT} characters")
    if total > TOTAL_LIMIT:
        found.append(f"{directory}: {total} bytes of keys and names; systemd hands over {TOTAL_LIMIT} at most")
    return found


def _walk(directory: Path, credential: str) -> Iterator[tuple[Path, str, int]]:
    """Yield the files that are credentials, with the name that each gets and its size; nothing of what is not there."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for name in names:
        path, made = directory / name, f"{credential}_{name}"
        try:
            status = path.lstat()
        except OSError:
            continue  # gone meanwhile
        if name.startswith("."):
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, made)
        elif stat.S_ISREG(status.st_mode):
            yield path, made, status.st_size
