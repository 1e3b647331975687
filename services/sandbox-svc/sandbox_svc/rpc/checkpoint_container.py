"""CheckpointContainer: a running container's processes, memory and changed files, in one archive; it runs on."""

import logging
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from bulkhead import metrics
from bulkhead.errors import BulkheadError, Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import bundle, reserve, trees, validate
from sandbox_svc.checkpoint import archive, criu
from sandbox_svc.checkpoint.rootfs_diff import RootfsDiff
from sandbox_svc.node import Node
from sandbox_svc.nri_exec import between
from sandbox_svc.rpc.exec import running
from sandbox_svc.store.entities import Container
from sandbox_svc.task.link import Link

logger = logging.getLogger(__name__)

#: Seconds that a checkpoint may take where the caller says nothing.
DEFAULT_TIMEOUT = 600.0


def checkpoint_container(
    node: Node, request: cri.CheckpointContainerRequest, context: grpc.ServicerContext
) -> cri.CheckpointContainerResponse:
    """Write a checkpoint of a running container to request.location, a path on the node.

    The container is frozen while its memory and its files are saved; a stop that comes meanwhile ends the checkpoint,
    which therefore does not hold the container's operation. FailedPrecondition, naming what is missing, where
    CRIU, the runtime or the kernel cannot do it, and for a container that is not running.
    """
    location = _location(request)
    container, link = running(node, request.container_id)
    handler = container.pod.record.handler
    criu.require(node.runtimes.resolve(handler), enabled=node.config.runtime.enable_criu)
    deadline = _Deadline(request, context, lambda: node.checkpoints.check(container.id))
    if not container.record.upper_dir:
        raise FailedPrecondition(f"container {container.id} has no writable layer of its own that could be saved")
    work = node.container_directory(container.id) / "checkpoint"
    with node.checkpoints.of(container.id), _directory(work), metrics.stage("container_checkpoint"):
        _not_stopping(container)
        with node.checkpoints.frozen(container.id), _frozen(node, link, container):
            deadline.check()
            _dump(link, container, work, deadline)
            _save_rootfs(node, container, work, deadline)
        _describe(node, container, work)
        try:
            archive.write(location, work, container.record.log_path, deadline.check)
        except OSError as error:
            raise FailedPrecondition(f"location {location}: {error.strerror or error}") from error
    logger.info("container %s: checkpoint written to %s", container.id, location)
    return cri.CheckpointContainerResponse()


def thaw(node: Node, container_id: str, link: Link) -> None:
    """Thaw a container that a checkpoint had frozen when sandbox-svc ended: nobody else of the CRI freezes any."""
    if container_id in node.checkpoints:
        return
    state = link.state(container_id)
    if state is not None and state.status == link.PAUSED:
        logger.warning("container %s was left frozen by a checkpoint and is thawed", container_id)
        link.resume(container_id)


class _Deadline:
    """The time that is left of a request: the caller's limits, or our default."""

    def __init__(
        self, request: cri.CheckpointContainerRequest, context: grpc.ServicerContext, look: Callable[[], object]
    ) -> None:
        """Take the request, its context, and what raises where the checkpoint is to end for another reason."""
        self._limit = float(request.timeout) or DEFAULT_TIMEOUT
        self._context = context
        self._look = look
        if (left := context.time_remaining()) is not None:
            self._limit = min(self._limit, left)
        self._end = time.monotonic() + self._limit

    def left(self) -> float:
        """Return the seconds that are left, some; DeadlineExceeded or Cancelled otherwise."""
        self.check()
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise DeadlineExceeded once the time is up, and Cancelled once the caller has gone."""
        if time.monotonic() >= self._end:
            raise DeadlineExceeded(f"the checkpoint was not made within {self._limit:g} s")
        if not self._context.is_active():
            raise Cancelled("the caller of CheckpointContainer has gone")
        self._look()


def _not_stopping(container: Container) -> None:
    """FailedPrecondition where a stop was there first; one that comes from now on ends the checkpoint."""
    with container.condition:
        if container.stoppers:
            raise FailedPrecondition(f"container {container.id} is being stopped")


def _location(request: cri.CheckpointContainerRequest) -> Path:
    """Return where the archive goes: a new file, or in the place of one, in a directory that is there."""
    validate.no_nul(request, "")
    validate.absolute("location", request.location)
    if request.timeout < 0:
        raise InvalidArgument(f"timeout is {request.timeout}, expected 0 (the default) or more seconds")
    path = Path(request.location)
    if not path.name or ".." in path.parts:
        raise InvalidArgument(f"location is {request.location!r}, expected the path of a file without '..'")
    if not path.parent.is_dir():
        raise InvalidArgument(f"location is {request.location!r}, but {path.parent} is no directory")
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISREG(kind):
        raise InvalidArgument(f"location {request.location!r} is there, and is no regular file")
    return path


@contextmanager
def _directory(place: Path) -> Iterator[None]:
    """Make a directory for the block, also where an earlier attempt has left one."""
    trees.remove(place)
    place.mkdir(parents=True, mode=0o700)
    try:
        yield
    finally:
        trees.remove(place)


@contextmanager
def _frozen(node: Node, link: Link, container: Container) -> Iterator[None]:
    """Freeze a container for the block, so that its files are those of its memory."""
    paused = False
    try:
        link.pause(container.id)
        paused = True
        between.frozen(node, container, "pause")
        yield
    finally:
        try:
            link.resume(container.id)
        except (NotFound, FailedPrecondition) as error:
            # It has ended, or never froze, or a stop has thawed it already.
            logger.info("container %s is not thawed: %s", container.id, error)
        except BulkheadError as error:
            logger.error("container %s could not be thawed, which is tried again: %s", container.id, error)
            node.settle(node, container.pod)
            paused = False
        if paused and container.state == cri.CONTAINER_RUNNING:
            between.frozen(node, container, "resume")


def _dump(link: Link, container: Container, work: Path, deadline: _Deadline) -> None:
    images = work / archive.CHECKPOINT
    images.mkdir(mode=0o700)
    try:
        link.checkpoint(container.id, str(images), str(work), deadline.left())
    except DeadlineExceeded:
        raise
    except BulkheadError as error:
        deadline.check()  # a stop has ended it
        reason = criu.trouble() if link.ours else ""
        found = f"CRIU does not work on this machine: {reason}" if reason else str(error)
        raise FailedPrecondition(f"container {container.id} cannot be checkpointed: {found}") from error


def _save_rootfs(node: Node, container: Container, work: Path, deadline: _Deadline) -> None:
    users = node.users(container.pod)
    diff = RootfsDiff(
        Path(container.record.upper_dir),
        uids=users.uids if users else (),
        gids=users.gids if users else (),
        tick=deadline.check,
    )
    with (work / archive.ROOTFS_DIFF).open("wb") as target:
        diff.write(target)
    if diff.deleted:
        archive.save_deleted(work, diff.deleted)


def _describe(node: Node, container: Container, work: Path) -> None:
    record = container.record
    files = archive.descriptions(
        container,
        bundle.read(node.bundle(container.id)),
        node.runtimes.resolve(container.pod.record.handler).handler.runtime_type,
        reserve.container_name(record.config.metadata, record.sandbox_id),
        time.time_ns(),
    )
    for name, data in files.items():
        (work / name).write_bytes(data)
