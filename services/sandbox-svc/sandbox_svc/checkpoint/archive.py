"""The archive of a checkpoint, as containerd and CRI-O write it for Kubernetes and checkpointctl reads it.

A plain tar of: checkpoint/ (CRIU's images), rootfs-diff.tar, deleted.files, config.dump, spec.dump, status.dump,
status, container.log, dump.log and stats-dump. Source: checkpointctl's lib/metadata.go.
"""

import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bulkhead.errors import FailedPrecondition
from sandbox_svc.checkpoint import go_json
from sandbox_svc.store import messages
from sandbox_svc.store.entities import Container

CHECKPOINT, ROOTFS_DIFF, DELETED = "checkpoint", "rootfs-diff.tar", "deleted.files"
_PIECE = 1 << 20


def descriptions(container: Container, spec: dict[str, Any], runtime: str, name: str, now: int) -> dict[str, bytes]:
    """Return the files that say what was checkpointed; `runtime` is the runtime type, `now` ns since 1970."""
    record = container.record
    status = messages.container_status(record, container.state)
    config = {
        "id": record.id,
        "name": name,
        "rootfsImage": status.image.image,
        "rootfsImageRef": status.image_ref,
        "rootfsImageName": status.image.image,
        "runtime": runtime,
        "createdTime": go_json.timestamp(record.created_at),
        "checkpointedTime": go_json.timestamp(now),
        "restoredTime": go_json.timestamp(0),
        "restored": False,
    }
    # What containerd keeps of a container's status on disk (internal/cri/store/container/status.go).
    kept = {
        "Version": "v1",
        "Pid": record.process.pid if record.process else 0,
        "CreatedAt": record.created_at,
        "StartedAt": record.started_at,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Reason": "",
        "Message": "",
        "Resources": go_json.plain(status.resources) or None,
    }
    documents = {"config.dump": config, "spec.dump": spec, "status.dump": go_json.plain(status), "status": kept}
    return {member: json.dumps(document).encode() for member, document in documents.items()}


def save_deleted(directory: Path, paths: list[str]) -> None:
    """Note what the container has removed of its image, as CRI-O does beside the whiteouts of the diff."""
    (directory / DELETED).write_text(json.dumps([f"/{path}" for path in paths]))


def write(location: Path, directory: Path, log: str, tick: Callable[[], object]) -> None:
    """Write the archive of what is in a directory of ours, and of a log file, to `location`, durable once it is there.

    A file that is there is replaced. OSError where it cannot be written; `tick` is called between files.
    """
    with _replacing(location) as target, tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(directory.rglob("*")):
            tick()
            archive.add(path, str(path.relative_to(directory)), recursive=False, filter=_ours)
        if log:
            _add_log(archive, log)


def _add_log(archive: tarfile.TarFile, log: str) -> None:
    """Add a container's log, as long as it is at this moment: the shim goes on writing it."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise FailedPrecondition(f"log_path {log} is not a regular file")
        entry = tarfile.TarInfo("container.log")
        entry.mode, entry.size, entry.mtime = 0o600, status.st_size, int(status.st_mtime)
        archive.addfile(entry, file)


def _ours(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Make an entry root's alone: images hold the memory of a container."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o700 if entry.isdir() else 0o600
    return entry


@contextmanager
def _replacing(location: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `location` when the block ends well, and is gone otherwise.

    Its name is its own: two containers may be checkpointed to the same place at once, and the later one counts.
    """
    fd, name = tempfile.mkstemp(".part", ".checkpoint-", location.parent)  # O_EXCL, mode 0600
    part = Path(name)
    try:
        with os.fdopen(fd, "wb", buffering=_PIECE) as file:
            yield file
            file.flush()
            os.fsync(fd)
        part.replace(location)
        parent = os.open(location.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
