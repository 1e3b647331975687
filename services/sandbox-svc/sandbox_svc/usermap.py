"""User namespaces of pods: the ids of a pod's processes, and its images' layers seen through them.

A layer belongs to many containers, whose roots are different users of the node. So each lower directory is cloned as a
mount that maps its owners through the pod's user namespace (mount_setattr(2)), and the overlay is made of these clones;
an overlay holds on to the mounts that it was made of, so they are detached again as soon as it is there. The upper
directory belongs to one container alone and is given to that container's root.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import linux, netns, trees
from sandbox_svc.netns import IdMapping
from sandbox_svc.oci.namespaces import user_namespace

_WHERE = "config.linux.security_context.namespace_options"


@dataclass(frozen=True)
class UserMap:
    """The ids of a pod, and the pin of the user namespace that has them."""

    pin: Path
    uids: tuple[IdMapping, ...]
    gids: tuple[IdMapping, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The node's ids of the user and group 0 of the pod."""
        return self.uids[0].host_id, self.gids[0].host_id


def of_pod(config: cri.PodSandboxConfig, pin: Path) -> UserMap | None:
    """Return the ids that a pod asks for, None without a user namespace; InvalidArgument for impossible mappings."""
    options = config.linux.security_context.namespace_options
    if not user_namespace(options, _WHERE):
        return None
    return UserMap(pin, _mappings(options.userns_options.uids), _mappings(options.userns_options.gids))


def _mappings(mappings: Iterable[cri.IDMapping]) -> tuple[IdMapping, ...]:
    return tuple(IdMapping(one.container_id, one.host_id, one.length) for one in mappings)


@contextlib.contextmanager
def mapped(
    mounts: Sequence[images_pb2.Mount], users: UserMap | None, stage: Path
) -> Iterator[Sequence[images_pb2.Mount]]:
    """Yield the plan of a rootfs as a pod's users see it, good for one mount(2) inside the block.

    `stage` is a directory for the clones, made and removed here. Without a user map the plan is as it was. Raises
    FailedPrecondition where the plan is not an overlay, or its file system cannot map ids.
    """
    if users is None:
        yield mounts
        return
    if len(mounts) != 1 or mounts[0].type != "overlay":
        raise FailedPrecondition("user namespaces need a rootfs that is one overlay mount")
    trees.remove(stage)
    stage.mkdir(parents=True, mode=0o711)
    try:
        yield [_through(mounts[0], users, stage)]
    finally:
        trees.remove(stage)


def bind(source: str, target: Path, users: UserMap) -> None:
    """Mount a directory read-only at a new directory, as a pod's users see it; FailedPrecondition if it cannot be."""
    _clone(source, target, users.pin, linux.MOUNT_ATTR_RDONLY)


def _through(mount: images_pb2.Mount, users: UserMap, stage: Path) -> images_pb2.Mount:
    options = []
    for option in mount.options:
        name, _, value = option.partition("=")
        if name == "lowerdir":
            clones = [stage / str(index) for index, _ in enumerate(value.split(":"))]
            for lower, clone in zip(value.split(":"), clones, strict=True):
                _clone(lower, clone, users.pin)
            option = "lowerdir=" + ":".join(map(str, clones))
        elif name == "upperdir":
            os.chown(value, *users.root)
        options.append(option)
    return images_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=options)


def _clone(source: str, target: Path, pin: Path, attributes: int = 0) -> None:
    """Mount a directory a second time with its owners mapped through a user namespace."""
    target.mkdir(mode=0o711)
    users = os.open(pin, os.O_RDONLY | os.O_CLOEXEC)
    try:
        tree = linux.open_tree(source)
        try:
            linux.mount_setattr(tree, set=linux.MOUNT_ATTR_IDMAP | attributes, userns_fd=users)
            linux.move_mount(tree, target)
        finally:
            os.close(tree)
    except OSError as error:
        raise FailedPrecondition(f"the owners of layer {source} cannot be mapped: {error}") from error
    finally:
        os.close(users)


@functools.cache
def supported(directory: Path) -> bool:
    """Whether the kernel maps ids of the file system that holds a directory, found out once by trying."""
    everyone = (IdMapping(0, 100_000, 65_536),)
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".idmap-") as scratch:
            pin, layer = Path(scratch, "userns"), Path(scratch, "layer")
            layer.mkdir()
            netns.create_user(pin, everyone, everyone)
            try:
                _clone(str(layer), Path(scratch, "clone"), pin)
            finally:
                trees.unmount(Path(scratch, "clone"))
                netns.remove(pin)
    except (OSError, FailedPrecondition):
        return False
    return True
