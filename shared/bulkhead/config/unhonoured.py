"""Options that are read and checked but do not have their effect yet; using one warns. README lists the same."""

#: Model paths; "*" stands for a handler's or a host's name.
UNHONOURED: frozenset[str] = frozenset()
