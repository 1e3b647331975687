"""What a schema of the configuration is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union


@dataclass(frozen=True)
class Option:
    """One key: its TOML type, the model field it fills ("*" stands for a user-chosen name), and what is said of it.

    kind: bool, int, str, strs (array of strings), duration (Go duration string), seconds (integer), table (free form).
    """

    kind: str
    target: str = ""
    deprecated: str = ""
    check: Callable[[Any], str] | None = None
    #: The value never stands in an error.
    secret: bool = False


@dataclass(frozen=True)
class Each:
    """A table whose keys the user chooses (handlers, hosts); each value follows one schema."""

    inner: "Node"


Node = Union[Option, Each, "Table"]
Table = dict[str, Node]
