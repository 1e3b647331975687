"""Which plugin set which field of which container: two plugins never set the same one (pure).

The rules are those of the Go module (pkg/api/owners.go): the first plugin to set a field owns it; one that removes an
entry first may set it anew; hooks accumulate, so they have several owners. Fields are either simple (one value) or
compound (entries by key: environment variables, mounts by destination, …).
"""

from typing import Any

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd.nri_pb2 import Field, OwningPlugins
from sandbox_svc.nri.keys import removal

_REMOVED = "-"


class Owners:
    """Owners by container id and field. A plugin that removed an entry is kept as its owner with a "-" before it."""

    def __init__(self) -> None:
        self._simple: dict[tuple[str, int], str] = {}
        self._compound: dict[tuple[str, int], dict[str, str]] = {}

    def claim(self, container: str, field: "Field | int", plugin: str, key: str | None = None) -> None:
        """Make a plugin the owner of a field, or of an entry of it; FailedPrecondition if another plugin is."""
        other = self.owner(container, field, key)
        if other is not None:
            other, removed = removal(other)
            if not (removed and other == plugin):
                what = Field.Name(field) if key is None else f"{Field.Name(field)} {key}"
                raise FailedPrecondition(f'NRI plugins "{plugin}" and "{other}" both tried to set {what}')
        self._set(container, field, plugin, key)

    def clear(self, container: str, field: "Field | int", plugin: str, key: str | None = None) -> None:
        """Note that a plugin removed a field or an entry, whoever owned it."""
        self._set(container, field, _REMOVED + plugin, key)

    def accumulate(self, container: str, field: "Field | int", plugin: str) -> None:
        """Add a plugin to the owners of a simple field."""
        other = self.owner(container, field)
        self._simple[container, int(field)] = plugin if other is None else f"{other},{plugin}"

    def owner(self, container: str, field: "Field | int", key: str | None = None) -> str | None:
        """Return who owns a field or an entry, None if no plugin does."""
        if key is None:
            return self._simple.get((container, int(field)))
        return self._compound.get((container, int(field)), {}).get(key)

    def entries(self, container: str, field: "Field | int") -> dict[str, str]:
        """Return the owners of a compound field by key."""
        return dict(self._compound.get((container, int(field)), {}))

    def message(self) -> OwningPlugins:
        """Return the owners as validators are told of them."""
        made: Any = OwningPlugins()
        for (container, field), owner in self._simple.items():
            made.owners[container].simple[field] = owner
        for (container, field), entries in self._compound.items():
            made.owners[container].compound[field].owners.update(entries)
        return made  # type: ignore[no-any-return]

    def _set(self, container: str, field: "Field | int", owner: str, key: str | None) -> None:
        if key is None:
            self._simple[container, int(field)] = owner
        else:
            self._compound.setdefault((container, int(field)), {})[key] = owner
