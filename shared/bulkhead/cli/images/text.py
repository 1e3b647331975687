"""Sizes, ages and tables as people read them."""

import time
from collections.abc import Sequence

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_AGES = ((31_536_000, "year"), (2_592_000, "month"), (604_800, "week"), (86_400, "day"), (3600, "hour"), (60, "minute"))


def size(count: float) -> str:
    """Return bytes in decimal units with three significant digits, as Docker shows them: `12.3MB`."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    if not unit:
        return f"{int(count)}B"
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f}{_UNITS[unit]}"


def age(nanoseconds: int, now: float | None = None) -> str:
    """Return how long ago a moment was: `3 hours ago`; empty for none."""
    if not nanoseconds:
        return ""
    seconds = (time.time() if now is None else now) - nanoseconds / 1e9
    for length, name in _AGES:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} seconds ago"


def moment(nanoseconds: int) -> str:
    """Return a moment in RFC 3339, UTC; empty for none."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds / 1e9)) if nanoseconds else ""


def duration(seconds: float) -> str:
    """Return a duration: `8 s`, `2 min 5 s`, `3 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(digest: str) -> str:
    """Return the first twelve digits of a digest."""
    return digest.rpartition(":")[2][:12]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), gap: int = 3) -> str:
    """Return aligned columns under their heads, those named in `right` flush right, and a line feed at the end."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(line[n]) for line in [list(heads), *shown]) for n in range(len(heads))]
    lines = []
    for line in [list(heads), *shown]:
        cells = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(line, widths, heads, strict=True)
        ]
        lines.append((" " * gap).join(cells).rstrip())
    return "".join(f"{line}\n" for line in lines)


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: names and labels are what an image's maker wrote."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
