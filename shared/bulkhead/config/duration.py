"""Durations as Go's time.ParseDuration writes them: "4h", "1h30m", "1.5s", "300ms", "0"."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str) -> float:
    """Return the seconds a Go duration stands for; ValueError says what was expected.

    An empty string is 0, as in containerd's configuration.
    """
    body = text[1:] if text[:1] in ("+", "-") else text
    if body in ("", "0"):
        return 0.0
    if not _WHOLE.fullmatch(body):
        raise ValueError('expected a Go duration such as "4h", "1m30s" or "500ms"')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(body))
    return -seconds if text.startswith("-") else seconds
