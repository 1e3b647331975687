"""`containerd-shim-bulkhead-v2 start`: how a stock containerd, 1.x or 2.x, makes a shim or finds the pod's.

Standard input holds BootstrapParams (2.3 and later), an Any of the runtime's options, or nothing; the answer is a
BootstrapResult, JSON where MAX_SHIM_VERSION is set, or the bare address. The caller waits until both standard output
and standard error are closed, and reads them as one.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from bulkhead.errors import AlreadyExists, BulkheadError, InvalidArgument
from bulkhead.proto.containerd.bootstrap_pb2 import BootstrapParams, BootstrapResult
from bulkhead.proto.containerd.runc_options_pb2 import Options
from sandbox_svc.shim import birth, cgroup, options
from sandbox_svc.shim.diary import Diary
from sandbox_svc.shim.shim import Settings, Shim

#: Where stock shims put their sockets.
SOCKET_DIRECTORY = "/run/containerd/s"
#: Containers of one pod carry this annotation and share a shim.
GROUP_ANNOTATION = "io.kubernetes.cri.sandbox-id"
#: The newest task service that is offered.
TASK_VERSION = 3


class Arguments(NamedTuple):
    """The command line that containerd gives every shim."""

    action: str = ""
    id: str = ""
    namespace: str = ""
    address: str = ""
    publish_binary: str = ""
    bundle: str = ""
    socket: str = ""
    debug: bool = False
    info: bool = False
    v: bool = False


class Call(NamedTuple):
    """What `start` was asked, whichever protocol it came by."""

    bootstrap: bool
    namespace: str
    events: str
    socket_directory: str
    options: Options


def parse_arguments(words: list[str]) -> Arguments:
    """Return the arguments, written as Go's flag package takes them: -name value, -name=value, --name."""
    values: dict[str, str | bool] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        field = name.replace("-", "_")
        if field not in Arguments._fields or field == "action":
            raise InvalidArgument(f"flag -{name} is not known")
        if isinstance(Arguments._field_defaults[field], bool):
            values[field] = value.lower() not in ("0", "f", "false") if equals else True
        elif not equals and not rest:
            raise InvalidArgument(f"flag -{name} needs a value")
        else:
            values[field] = value if equals else rest.pop(0)
    return Arguments(action=rest[0] if rest else "", **values)  # type: ignore[arg-type]  # by the flags' kinds


def understand(arguments: Arguments, stdin: bytes, environment: Mapping[str, str]) -> Call:
    """Tell the start protocols apart: only BootstrapParams begin with the id that the arguments name."""
    events = environment.get("TTRPC_ADDRESS", "")
    try:
        params = BootstrapParams.FromString(stdin)
    except DecodeError:
        params = BootstrapParams()
    if params.instance_id == arguments.id and arguments.id:
        packed = [extension.value for extension in params.extensions]
        return Call(
            bootstrap=True,
            namespace=params.namespace or arguments.namespace,
            events=params.containerd_ttrpc_address or events,
            socket_directory=params.socket_dir or SOCKET_DIRECTORY,
            options=_options(packed),
        )
    try:
        packed = [Any.FromString(stdin)]
    except DecodeError:
        packed = []
    return Call(False, arguments.namespace, events, SOCKET_DIRECTORY, _options(packed))


def answer(call: Call, address: str, environment: Mapping[str, str]) -> bytes:
    """Return what the caller expects to read: see the module's first lines."""
    if call.bootstrap:
        return BootstrapResult(version=TASK_VERSION, address=address, protocol="ttrpc").SerializeToString()
    newest = environment.get("MAX_SHIM_VERSION", "")
    if newest:
        version = min(TASK_VERSION, int(newest)) if newest.isdigit() else TASK_VERSION
        return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()


def group(bundle: str, ident: str) -> str:
    """Return the id of the pod that a bundle belongs to, or its own."""
    try:
        with open(os.path.join(bundle, "config.json"), "rb") as file:
            spec = json.load(file)
    except (OSError, ValueError):
        return ident
    annotations = spec.get("annotations") if isinstance(spec, dict) else None
    return str((annotations or {}).get(GROUP_ANNOTATION) or ident)


def start(arguments: Arguments) -> bytes:
    """Make the pod's shim, or find the one that a container of the pod has made already; return the answer."""
    call = understand(arguments, _stdin(), os.environ)
    bundle = os.getcwd()
    owner = group(bundle, arguments.id)
    digest = hashlib.sha256(f"{arguments.address}/{call.namespace}/{owner}".encode()).hexdigest()
    os.makedirs(call.socket_directory, mode=0o711, exist_ok=True)
    path = os.path.join(call.socket_directory, digest)
    address = f"unix://{path}"
    try:
        listener = birth.listen(path)
    except AlreadyExists:
        _remember(bundle, address)
        return answer(call, address, os.environ)
    settings = Settings(
        namespace=call.namespace,
        task=listener,
        stream=None,
        console_base=os.path.join(call.socket_directory, f"{digest[:16]}-c"),
        events=call.events,
        leave_behind=(path,),
    )

    def live() -> None:
        diary = Diary()
        diary.begin(os.path.join(bundle, "log"))
        diary.open()
        diary.take_logs("debug" if arguments.debug else "info")
        shim = Shim()
        shim.begin(settings)
        shim.run()

    pid = birth.orphan(live, (listener.fileno(),))
    if call.options.shim_cgroup:
        cgroup.join(call.options.shim_cgroup, pid)
    _remember(bundle, address)
    return answer(call, address, os.environ)


def _remember(bundle: str, address: str) -> None:
    """Containerd 1.x finds a shim again by this file after it was restarted."""
    with open(os.path.join(bundle, "address"), "w") as file:
        file.write(address)


def _options(packed: list[Any]) -> Options:
    """Return the first of these that are options of a runtime; other extensions are not for us."""
    for value in packed:
        try:
            return options.read(value)
        except BulkheadError:
            continue
    return Options()


def _stdin() -> bytes:
    try:
        return sys.stdin.buffer.read() if sys.stdin is not None and not sys.stdin.isatty() else b""
    except OSError:
        return b""
