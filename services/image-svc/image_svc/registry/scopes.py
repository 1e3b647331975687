"""Scopes of bearer tokens: `type:name:action,action` (distribution's spec/auth/scope)."""

from dataclasses import dataclass, field


def repository(name: str, *actions: str) -> str:
    """Return the scope of a repository and what one wants to do with it."""
    return f"repository:{name}:{','.join(actions)}"


def split(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a scope's resource and its actions; a scope of another shape is a resource without actions.

    The name may hold a colon, before a registry's port.
    """
    resource, colon, actions = text.rpartition(":")
    if not colon or ":" not in resource:
        return text, ()
    return resource, tuple(actions.split(","))


@dataclass
class Scopes:
    """What a token must be good for: what registries asked for so far, our own wish, and what was added on the way."""

    own: str
    #: Actions by resource, both in the order in which they came.
    _asked: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, scopes: str) -> None:
        """Take up the scopes of a challenge, or further ones of ours, with blanks between them."""
        for scope in scopes.split():
            resource, actions = split(scope)
            self._asked.setdefault(resource, {}).update(dict.fromkeys(actions))

    def remove(self, scope: str) -> None:
        """Do without a resource that was added."""
        self._asked.pop(split(scope)[0], None)

    def wanted(self) -> tuple[str, ...]:
        """Return the scopes to ask for.

        Our own counts where the registry names the same resource or none: a mirror may keep a repository under another
        name, and its token service knows only that one.
        """
        resource, actions = split(self.own)
        asked = {name: dict(given) for name, given in self._asked.items()}
        if resource in asked or not any(name.startswith("repository:") for name in asked):
            asked[resource] = {**dict.fromkeys(actions), **asked.get(resource, {})}
        return tuple(f"{name}:{','.join(given)}" if given else name for name, given in asked.items())
