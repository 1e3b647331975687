"""Shims that are binaries of their own: gVisor's, Kata's, the stock one for runc; started as containerd starts them.

Three generations of `start` refuse each other's input. BootstrapParams on standard input is tried first, then the
runtime options alone (as an Any, or nothing); what worked is remembered for that very file.
"""

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import DecodeError, Message

from bulkhead import command
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd.bootstrap_pb2 import BootstrapParams, BootstrapResult, Extension
from bulkhead.proto.containerd.task_pb2 import DeleteResponse
from sandbox_svc.store.records import Exit
from sandbox_svc.task.link import exit_of

logger = logging.getLogger(__name__)

#: Seconds for the `start` and `delete` commands of a shim.
START_TIMEOUT, DELETE_TIMEOUT = 30.0, 30.0

_generations: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Started:
    """What `start` answered: the socket's address, and the task service behind it, "v2" or "v3"."""

    address: str
    service: str


def binary_of(runtime_type: str, runtime_path: str) -> str:
    """Return a shim's path: runtime_path, or `containerd-shim-X-vN` in PATH for io.containerd.X.vN."""
    if runtime_path:
        return runtime_path
    parts = runtime_type.split(".")
    if len(parts) < 3 or not all(parts):
        raise InvalidArgument(f"runtime_type is {runtime_type!r}, expected one like io.containerd.runsc.v1")
    name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
    found = shutil.which(name)
    if found is None:
        raise FailedPrecondition(f"runtime_type {runtime_type}: {name} is not in PATH")
    return found


def any_of(options: Message | None) -> ProtoAny | None:
    """Return options as containerd packs them: the type URL is the bare full name."""
    if options is None:
        return None
    return ProtoAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


def start(
    binary: str, ident: str, bundle: Path, *, namespace: str, events: Path, options: Message | None, debug: bool = False
) -> Started:
    """Start a shim for a bundle; FailedPrecondition with what it said if it does not start."""
    packed = any_of(options)
    inputs: dict[str, Callable[[], bytes]] = {
        "bootstrap": lambda: _bootstrap(ident, namespace, events, packed).SerializeToString(),
        "options": lambda: packed.SerializeToString() if packed is not None else b"",
        "nothing": lambda: b"",
    }
    key = _key(binary)
    with _lock:
        known = _generations.get(key)
    complaints = []
    for generation in [known] if known else list(inputs):
        result = _run(binary, ident, bundle, namespace, events, "start", inputs[generation](), debug)
        if result.returncode == 0:
            with _lock:
                _generations[key] = generation
            # Both streams are the answer's: containerd reads them together, and so a shim may write to either.
            return parse(result.stdout or result.stderr)
        complaints.append(f"{generation}: {result.complaint}")
    raise FailedPrecondition(f"{binary} start failed: {'; '.join(complaints)}")


def delete(binary: str, ident: str, bundle: Path, *, namespace: str, events: Path) -> Exit | None:
    """Run a shim's `delete` command, which tidies up after a shim that is gone; None if it says nothing useful."""
    result = _run(binary, ident, bundle, namespace, events, "delete", b"", False, DELETE_TIMEOUT)
    if result.returncode != 0:
        logger.warning("%s delete of %s failed: %s", binary, ident, result.complaint)
        return None
    with contextlib.suppress(DecodeError):
        answer = DeleteResponse.FromString(result.stdout)
        return exit_of(answer.exit_status, answer.exited_at)
    return None


def parse(answer: bytes) -> Started:
    """Return what `start` wrote: a BootstrapResult, JSON, or a bare address."""
    text = answer.strip()
    if text.startswith(b"{"):
        data = json.loads(text)
        return _checked(data.get("address", ""), int(data.get("version", 2)), data.get("protocol", "ttrpc"))
    if text.startswith((b"unix://", b"/")):
        return _checked(text.decode(), 2, "ttrpc")
    try:
        result = BootstrapResult.FromString(answer)
    except DecodeError as error:
        raise FailedPrecondition(f"shim start answered {answer[:200]!r}, expected an address") from error
    return _checked(result.address, result.version, result.protocol)


def _checked(address: str, version: int, protocol: str) -> Started:
    if protocol != "ttrpc":
        raise FailedPrecondition(f"shim speaks {protocol!r}, expected ttrpc")
    if not address:
        raise FailedPrecondition("shim start answered no address")
    return Started(address, "v3" if version >= 3 else "v2")


def _key(binary: str) -> tuple[str, int, int]:
    status = os.stat(binary)
    return binary, status.st_ino, status.st_mtime_ns


def _bootstrap(ident: str, namespace: str, events: Path, options: ProtoAny | None) -> BootstrapParams:
    params = BootstrapParams(
        instance_id=ident,
        namespace=namespace,
        containerd_ttrpc_address=str(events),
        containerd_grpc_address=str(events),
        containerd_binary="/bin/true",
    )
    if options is not None:
        params.extensions.append(Extension(value=options))
    return params


def _run(
    binary: str,
    ident: str,
    bundle: Path,
    namespace: str,
    events: Path,
    action: str,
    stdin: bytes,
    debug: bool,
    timeout: float = START_TIMEOUT,
) -> command.Result:
    arguments: Sequence[str] = (
        binary,
        *("-namespace", namespace),
        *("-address", str(events).removesuffix(".ttrpc")),
        # Publishing by a program is the old way; TTRPC_ADDRESS is there, so this is never run.
        *("-publish-binary", "/bin/true"),
        *("-id", ident),
        *("-bundle", str(bundle)),
        *(("-debug",) if debug else ()),
        action,
    )
    environment = {
        **os.environ,
        "TTRPC_ADDRESS": str(events),
        "GRPC_ADDRESS": str(events).removesuffix(".ttrpc"),
        "NAMESPACE": namespace,
        "MAX_SHIM_VERSION": "3",
    }
    return command.run(arguments, timeout=timeout, input=stdin, env=environment, cwd=str(bundle))


def held_log(bundle: Path) -> int:
    """Make the bundle's `log` FIFO and open it: a stock shim serves nothing until somebody reads it.

    The keeper takes over with the first Create; until then the pipe's 64 KiB are room enough. The caller closes it.
    """
    path = bundle / "log"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o700)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
