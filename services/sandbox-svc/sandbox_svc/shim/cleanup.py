"""`containerd-shim-bulkhead-v2 delete`: remove a container without its shim, dead or only out of reach."""

import json
import os
import shutil
import time

from bulkhead import command
from bulkhead.errors import BulkheadError
from bulkhead.proto.containerd.task_pb2 import DeleteResponse
from sandbox_svc.shim import mounts, view
from sandbox_svc.shim.endings import EXIT_FILE, stamp
from sandbox_svc.shim.lifecycle import RUNTIME_FILE
from sandbox_svc.shim.runtime import DEFAULT_ROOT

#: The status of a container of which nothing is known: as if SIGKILL had ended it.
UNKNOWN_STATUS = 137
#: Seconds that the runtime may take.
LIMIT = 30.0


def delete(namespace: str, ident: str, bundle: str) -> bytes:
    """Kill and remove what the runtime keeps of a container, unmount its rootfs, and return a DeleteResponse.

    Nothing left to remove is success: containerd calls this after every disconnect.
    """
    note = _read(os.path.join(bundle, RUNTIME_FILE))
    end = _read(os.path.join(bundle, EXIT_FILE))
    root = str(note.get("root") or os.path.join(DEFAULT_ROOT, namespace))
    if os.path.isdir(os.path.join(root, ident)):
        _remove(str(note.get("binary") or shutil.which("runc") or "runc"), root, ident, bool(note.get("systemd")))
    mounts.unmount(os.path.join(os.path.abspath(bundle), "rootfs"))
    answer = DeleteResponse(pid=_number(end, "pid", 0), exit_status=_number(end, "status", UNKNOWN_STATUS))
    answer.exited_at.CopyFrom(stamp(_number(end, "exited_at", time.time_ns())))
    return answer.SerializeToString()


def _remove(binary: str, root: str, ident: str, systemd: bool) -> None:
    line = [binary, "--root", root, *(["--systemd-cgroup"] if systemd else []), "delete", "--force", ident]
    try:
        if view.needed(binary):
            os.chdir("/")
            with view.without_unified():
                command.run(line, timeout=LIMIT)
        else:
            command.run(line, timeout=LIMIT)
    except BulkheadError:
        return  # the caller can do no more about it than we can; what is left is found by `bulkhead doctor`


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            note = json.load(file)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _number(note: dict[str, object], key: str, default: int) -> int:
    value = note.get(key, default)
    return value if isinstance(value, int) else default
