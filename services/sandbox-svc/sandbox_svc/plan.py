"""What image-svc may ask to have mounted: its plans come from a process without rights, and root carries them out.

A plan that named any other directory would hand the node's own file system to a container.
"""

import re
from pathlib import Path

from bulkhead.errors import PermissionDenied
from bulkhead.proto import images_pb2


def check(plan: images_pb2.PrepareResponse, snapshots: Path) -> None:
    """Raise PermissionDenied unless the plan is made of snapshots in that directory, which is root's alone."""
    own = rf"{re.escape(str(snapshots))}/[0-9a-z]+"
    overlay = rf"index=off|workdir={own}/work|upperdir={own}/fs|lowerdir={own}/fs(:{own}/fs)*"
    for mount in plan.mounts:
        if mount.type == "bind":
            options, source = r"r?bind|ro|rw", rf"{own}/fs"
        elif mount.type == "overlay":
            options, source = overlay, "overlay"
        else:
            raise _refused(f"type {mount.type!r}")
        if not re.fullmatch(source, mount.source) or mount.target:
            raise _refused(f"{mount.source!r} at {mount.target!r}")
        for option in mount.options:
            if not re.fullmatch(options, option):
                raise _refused(f"option {option[:300]!r}")
    if plan.upper_dir and not re.fullmatch(rf"{own}/fs", plan.upper_dir):
        raise _refused(f"upper directory {plan.upper_dir[:300]!r}")


def _refused(what: str) -> PermissionDenied:
    return PermissionDenied(f"image-svc asks for a mount that is not made of its snapshots: {what}")
