"""Who of a pod's containers ran out of memory, told even where a container's own count is gone.

systemd removes a scope's group as soon as its last process has ended, often before the count in it could be read. The
pod's slice counts on, for everything below it: what it has counted and no other container accounts for is that one's.
"""

import os

from sandbox_svc.shim.cgroup import Cgroup

#: Slices that hold more than pods: what they count says nothing about one of ours.
_SHARED = ("system.slice", "user.slice", "machine.slice", "init.slice")


class Tally:
    """The kernel's kills for want of memory by container."""

    def __init__(self) -> None:
        self._groups: dict[str, Cgroup] = {}
        #: The highest count seen of each container, for when there is none to see any more.
        self._seen: dict[str, int] = {}
        #: What each slice had counted before our present containers, and for those that are forgotten.
        self._settled: dict[str, int] = {}

    def add(self, ident: str, group: Cgroup) -> None:
        """Begin to count for a container, before anything of its image runs."""
        above = slice_of(group)
        if above and above not in self._settled:
            self._settled[above] = _count(above)
        self._groups[ident], self._seen[ident] = group, 0

    def kills(self, ident: str) -> int:
        """Return how many processes of a container have been killed for memory."""
        group = self._groups.get(ident)
        if group is None:
            return 0
        count, above = self._look(ident), slice_of(group)
        if count is None and above:
            others = sum(self._look(other) or self._seen[other] for other in self._in(above) if other != ident)
            left = _count(above) - self._settled[above] - others
            self._seen[ident] = max(self._seen[ident], left)
        return self._seen[ident]

    def forget(self, ident: str) -> None:
        """End counting for a container; its slice keeps what it has counted for it."""
        group = self._groups.pop(ident, None)
        seen = self._seen.pop(ident, 0)
        above = slice_of(group) if group is not None else ""
        if above in self._settled:
            self._settled[above] += seen

    def _look(self, ident: str) -> int | None:
        """Return a container's own count, None if its group is gone."""
        count = self._groups[ident].oom_kills()
        if count is not None:
            self._seen[ident] = count
        return count

    def _in(self, above: str) -> list[str]:
        return [ident for ident, group in self._groups.items() if slice_of(group) == above]


def slice_of(group: Cgroup) -> str:
    """Return the directory of the slice that a scope is in; "" for a group that is not systemd's, or a shared slice."""
    path, scope = group.directory("memory") if group.unified else "", False
    while len(path) > 1:
        name = os.path.basename(path)
        if name.endswith(".slice"):
            return path if scope and name not in _SHARED else ""
        scope = scope or name.endswith(".scope")
        path = os.path.dirname(path)
    return ""


def _count(directory: str) -> int:
    return Cgroup({"": directory}).oom_kills() or 0
