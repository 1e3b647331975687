"""What a snapshotter is, and the plan of mounts it answers with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Mount:
    """One mount(2), as containerd's types.Mount has it; `target` is relative to the root file system."""

    type: str
    source: str
    options: tuple[str, ...]
    target: str = ""


@dataclass(frozen=True)
class Prepared:
    """A root file system: the mounts that make it, and the directory its writes go to ("" if it is read-only)."""

    mounts: tuple[Mount, ...]
    upper_dir: str


class Snapshotter(Protocol):
    """Makes root file systems out of layers; `chain` is always base first.

    Names of snapshots and layers are the snapshotter's own: numbers for Bulkhead's, for a proxy containers' ids and
    chain ids.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it: overlayfs, native, or a proxy plugin's name."""

    def prepare(self, name: str, chain: Sequence[str]) -> Prepared:
        """Make the writable snapshot `name` on top of `chain`, or return the plan of the one that is there."""

    def view(self, name: str, chain: Sequence[str]) -> Prepared:
        """Make a read-only snapshot; overlayfs needs no directory for it, so `name` may stay unused."""

    def remove(self, name: str) -> None:
        """Drop a snapshot; nothing by that name is success. The files go in the background."""
