"""The small files of control groups, read in one call each; what is not there is empty."""

import os


def read(directory: str, name: str) -> bytes:
    """Return a file's content, b"" where it is missing or its group has just gone."""
    try:
        fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 16384)
    except OSError:
        return b""
    finally:
        os.close(fd)


def number(directory: str, name: str) -> int | None:
    """Return the number a file holds; None for "max", for a negative number, and where there is no such file."""
    text = read(directory, name).strip()
    return int(text) if text.isdigit() else None


def fields(directory: str, name: str) -> dict[str, int]:
    """Return a file of lines `name number`."""
    words = read(directory, name).decode().split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=False))
