"""Checkpoints: CRIU, driven by the OCI runtime, writes a container's processes to a directory of images."""

import os
import shutil
from contextlib import suppress

from bulkhead.errors import BulkheadError, InvalidArgument
from bulkhead.proto.containerd.runc_options_pb2 import CheckpointOptions
from bulkhead.proto.containerd.task_pb2 import CheckpointTaskRequest
from bulkhead.proto.containerd.task_types_pb2 import RUNNING
from sandbox_svc.shim.processes import Container, nothing
from sandbox_svc.shim.runtime import RuntimeFailed

#: Option -> flag of the runtimes' `checkpoint` command.
_FLAGS = {
    "open_tcp": "--tcp-established",
    "external_unix_sockets": "--ext-unix-sk",
    "terminal": "--shell-job",
    "file_locks": "--file-locks",
}
#: Errors of CRIU's log that are passed on, characters of each, and bytes of the log's end in which they are looked for.
_REASONS, _LENGTH, _TAIL = 3, 300, 1 << 16


async def write(container: Container, request: CheckpointTaskRequest, deadline: float) -> None:
    """Write a running container's processes to request.path; RuntimeFailed carries what CRIU's log calls an error.

    Resume and SIGKILL end it (`container.end_dump`): it may take minutes, and a stop must reach the container.
    The options are containerd.runc.v1.CheckpointOptions; without `exit` the container runs on, or stays paused.
    """
    options = _read(request)
    async with container.turn:
        container.init.require("checkpoint")
        work = options.work_path or f"{container.bundle}/criu-work"
        arguments = ["checkpoint", "--image-path", request.path, "--work-path", work]
        arguments += [flag for name, flag in _FLAGS.items() if getattr(options, name)]
        if not options.exit:
            arguments.append("--leave-running")
        if options.parent_path:
            arguments += ["--parent-path", options.parent_path]
        if options.cgroups_mode:
            arguments += ["--manage-cgroups-mode", options.cgroups_mode]
        for namespace in options.empty_namespaces:
            arguments += ["--empty-ns", namespace]
        try:
            await container.runtime.call(
                [*arguments, container.id],
                container.bundle,
                deadline,
                begun=lambda end: setattr(container, "end_dump", end),
            )
        except BulkheadError as error:
            await _thaw(container)
            if not isinstance(error, RuntimeFailed):
                raise
            if reasons := _errors(f"{work}/dump.log"):
                raise RuntimeFailed(f"{error}; CRIU: {'; '.join(reasons)}") from error
            raise
        finally:
            container.end_dump = nothing
            if not options.work_path:
                shutil.rmtree(work, ignore_errors=True)


async def _thaw(container: Container) -> None:
    """Thaw what CRIU had frozen by itself when it was killed; who paused the container before resumes it, too."""
    if container.init.status == RUNNING:
        with suppress(BulkheadError):  # it is not frozen
            await container.runtime.call(["resume", container.id], container.bundle, 0)


def _read(request: CheckpointTaskRequest) -> CheckpointOptions:
    options = CheckpointOptions()
    name = request.options.type_url.rpartition("/")[2]
    if name:
        if name != CheckpointOptions.DESCRIPTOR.full_name:
            raise InvalidArgument(
                f"checkpoint options of type {name!r}: this shim takes {options.DESCRIPTOR.full_name}"
            )
        options = CheckpointOptions.FromString(request.options.value)
    for field, path in (("path", request.path), ("work_path", options.work_path or "/")):
        if not os.path.isabs(path):
            raise InvalidArgument(f"{field} {path!r} is not an absolute path")
    return options


def _errors(log: str) -> list[str]:
    """Return the first errors of a log of CRIU: lines like `(00.01) Error (criu/x.c:1): why`."""
    try:
        with open(log, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            lines = file.read(_TAIL).splitlines()
    except OSError:
        return []
    found = [line.decode(errors="replace").partition("Error ")[2] for line in lines if b" Error " in line]
    return [text[:_LENGTH] for text in found[:_REASONS]]
