"""Images as volumes: a mount of a container that is an image, mounted read-only beside the container's bundle.

Each has a snapshot key of its own, so that image-svc keeps the layers while the container exists. What is mounted are
the image's layers alone; the writable directory that comes with a snapshot stays unused.
"""

import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument
from bulkhead.proto import images_pb2
from bulkhead.proto.containerd import types_pb2
from sandbox_svc import linux, undo
from sandbox_svc.shim import mounts as plans
from sandbox_svc.store.database import Entry
from sandbox_svc.store.records import ContainerRecord
from sandbox_svc.usermap import UserMap, bind, mapped

#: The word at the head of an error by which the kubelet knows that a volume is at fault (CRI, ImageVolumeMountFailed).
FAILED = "ImageVolumeMountFailed"

#: A plan with very many layers is mounted from inside their directory: one at a time.
_working_directory = threading.Lock()


def intents(record: ContainerRecord, place: Path) -> list[Entry]:
    """Return what is about to be made for a container's images below `place`."""
    found: list[Entry] = []
    for index in record.image_mounts():
        found += [undo.snapshot(record.image_key(index)), undo.mount(place / str(index))]
    return [undo.directory(place), *found] if found else []


def mount_all(
    record: ContainerRecord,
    place: Path,
    prepare: Callable[[str, str], Sequence[images_pb2.Mount]],
    users: UserMap | None = None,
    stage: Path = Path(),
) -> dict[int, str]:
    """Mount a container's images below `place`; return what to bind by index of the mount.

    `prepare(reference, key)` makes a snapshot and returns its plan. In a pod with a user namespace the images' owners
    are mapped through it; `stage` is a directory to make and remove on the way. Errors begin with
    ImageVolumeMountFailed.
    """
    found: dict[int, str] = {}
    for index, mount in record.image_mounts().items():
        target = place / str(index)
        try:
            plan = read_only(prepare(mount.image.image, record.image_key(index)))
            _mount(plan, target, users, stage)
            found[index] = inside(target, mount.image_sub_path)
        except BulkheadError as error:
            raise type(error)(f"{FAILED}: mounts[{index}].image {mount.image.image}: {error}") from error
    return found


def _mount(plan: Sequence[images_pb2.Mount], target: Path, users: UserMap | None, stage: Path) -> None:
    if users is not None and plan[0].type == "bind":
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        bind(plan[0].source, target, users)
        return
    target.mkdir(parents=True, mode=0o755)
    with _working_directory, mapped(plan, users, stage) as mounts:
        shown = [types_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in mounts]
        plans.execute(plans.plan(shown, str(target)), str(target))


def read_only(mounts: Sequence[images_pb2.Mount]) -> list[images_pb2.Mount]:
    """Return the plan of a writable snapshot without what makes it writable."""
    if len(mounts) != 1:
        raise FailedPrecondition("the snapshot is not one mount")
    [mount] = mounts
    lower, kind, options = mount.source, "bind", ["rbind", "ro"]
    if mount.type == "overlay":
        kept = [option for option in mount.options if option.partition("=")[0] not in ("upperdir", "workdir")]
        lower = next(option for option in kept if option.startswith("lowerdir=")).removeprefix("lowerdir=")
        # An overlay without an upper directory needs two lower ones.
        if ":" in lower:
            lower, kind, options = mount.source, "overlay", [*kept, "ro"]
    return [images_pb2.Mount(type=kind, source=lower, options=options)]


def inside(target: Path, sub_path: str) -> str:
    """Return a directory of a mounted image; symlinks on the way lead nowhere outside the image.

    InvalidArgument for a path that is absolute or has "..", FailedPrecondition for one that is no directory there.
    """
    if not sub_path:
        return str(target)
    if sub_path.startswith("/") or ".." in sub_path.split("/"):
        raise InvalidArgument(f"image_sub_path is {sub_path!r}, expected a relative path without '..'")
    root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = linux.openat2(sub_path, os.O_PATH, dirfd=root, resolve=linux.RESOLVE_IN_ROOT)
    except OSError as error:
        raise FailedPrecondition(f"image_sub_path {sub_path!r}: {error.strerror}") from error
    finally:
        os.close(root)
    try:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            raise FailedPrecondition(f"image_sub_path {sub_path!r} is no directory")
        return os.readlink(f"/proc/self/fd/{found}")
    finally:
        os.close(found)
