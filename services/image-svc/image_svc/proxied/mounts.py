"""The mounts that a proxy snapshotter answers with, read: where a layer is to be unpacked, and a container's plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from bulkhead.errors import Unimplemented
from bulkhead.proto.containerd.types_pb2 import Mount as Wire
from image_svc.snapshots.base import Mount, Prepared


@dataclass(frozen=True)
class Place:
    """Where a layer goes: a directory, and those of the layers beneath it, the nearest first."""

    upper: str
    lowers: tuple[str, ...]


def place(mounts: Sequence[Wire], snapshotter: str) -> Place:
    """Return the directory that a layer can be unpacked into without mounting; Unimplemented names what cannot be."""
    mount = _only(mounts, snapshotter)
    if mount.type == "bind" and "ro" not in mount.options:
        return Place(mount.source, ())
    named = _named(mount.options)
    if mount.type != "overlay" or "upperdir" not in named:
        raise _unknown(mount, snapshotter)
    if "userxattr" in mount.options:
        raise Unimplemented(
            f"snapshotter {snapshotter} wants a layer unpacked for overlay mounts with userxattr, which is not built"
        )
    return Place(named["upperdir"], tuple(part for part in named.get("lowerdir", "").split(":") if part))


def prepared(mounts: Sequence[Wire], snapshotter: str) -> Prepared:
    """Return the plan of a container's root file system; Unimplemented names a type that is not carried out."""
    mount = _only(mounts, snapshotter)
    if mount.type not in ("bind", "overlay"):
        raise _unknown(mount, snapshotter)
    upper = mount.source if mount.type == "bind" else _named(mount.options).get("upperdir", "")
    return Prepared((Mount(mount.type, mount.source, tuple(mount.options), mount.target),), upper)


def _only(mounts: Sequence[Wire], snapshotter: str) -> Wire:
    if len(mounts) != 1:
        types = ", ".join(mount.type for mount in mounts)[:200] or "none"
        raise Unimplemented(f"snapshotter {snapshotter} answers with {len(mounts)} mounts ({types}), expected one")
    return mounts[0]


def _named(options: Sequence[str]) -> dict[str, str]:
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def _unknown(mount: Wire, snapshotter: str) -> Unimplemented:
    shown = f"{mount.type[:40]!r} ({','.join(mount.options)[:100]})"
    return Unimplemented(
        f"snapshotter {snapshotter} answers with a mount of type {shown}; overlay and bind mounts are carried out"
    )
