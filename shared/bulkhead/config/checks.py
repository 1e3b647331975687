"""What a value must be beyond its type. A check returns "" or what was expected, to stand in the error."""

from collections.abc import Callable
from typing import Any


def at_least(lowest: float) -> Callable[[Any], str]:
    """The number is that or more."""
    return lambda value: "" if value >= lowest else f"expected {lowest:g} or more"


def above(limit: float) -> Callable[[Any], str]:
    """The number is more than that."""
    return lambda value: "" if value > limit else f"expected more than {limit:g}"


def one_of(*allowed: str) -> Callable[[Any], str]:
    """The string is one of those."""
    return lambda value: "" if value in allowed else "expected one of " + ", ".join(f'"{item}"' for item in allowed)


def absolute(value: Any) -> str:
    """The path is absolute and clean."""
    good = value.startswith("/") and "\0" not in value and ".." not in value.split("/")
    return "" if good else 'expected an absolute path without ".."'


def exports(value: Any) -> str:
    """The table holds strings, and its `root`, if any, is an absolute path other than "/"."""
    if not all(isinstance(item, str) for item in value.values()):
        return "expected strings by name"
    root = value.get("root", "")
    if root and (root.rstrip("/") != root or absolute(root)):
        return 'expected root to be an absolute path without ".." and without "/" at its end'
    return ""


def port(value: Any) -> str:
    """The string is a TCP port; "0" picks a free one."""
    good = value.isascii() and value.isdigit() and int(value) <= 65535
    return "" if good else 'expected a port number as a string, "0" to "65535"'


def sandboxer(value: Any) -> str:
    """Only containerd's "podsandbox" is built: sandboxer "shim" is another API."""
    if value in ("", "podsandbox"):
        return ""
    return 'expected "podsandbox": the sandbox API of shims (sandboxer "shim") is not supported'


log_level = one_of("", "trace", "debug", "info", "warn", "error", "fatal", "panic")
log_format = one_of("", "text", "json")
key_model = one_of("", "node")
recursive_read_only = one_of("", "Enabled", "IfPossible", "Disabled")
