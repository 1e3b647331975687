"""Paths of proxy snapshotters: named by image-svc, which has no rights, and used by processes that have them.

The administrator names one directory for each such snapshotter (`[proxy_plugins.<name>.exports] root`). What image-svc
names must lie in it, in the place of a snapshot and not within one: what is within was made by an image or by a
container.
"""

import re
from pathlib import Path

from bulkhead.errors import PermissionDenied

#: What every snapshotter that stacks directories calls a snapshot's tree, as overlayfs's own does.
_TREE = "fs"
#: Characters that mean something in mount options, or in a line.
_COMPONENT = re.compile(r"[^\0-\x1f:,\\/]+")


def below(root: Path, path: str) -> str:
    """Return a path relative to a snapshotter's directory; PermissionDenied unless it is one of a snapshot in it.

    Links are not looked for: who opens the path has to forbid them.
    """
    base = f"{root}/"
    parts = path.removeprefix(base).split("/")
    plain = all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in parts)
    if not path.startswith(base) or not plain or _TREE in parts[:-1]:
        raise PermissionDenied(f"{path[:300]!r} is no snapshot's directory below {root}")
    return "/".join(parts)
