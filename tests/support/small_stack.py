"""A stack whose pod-making services are stand-ins: what the supervisor, the launcher and the frontend do is real.

Each stand-in serves its socket as the real service does, and nothing behind it, so that tests of starting, stopping
and privileges need neither a runtime nor images.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.ports import free_port

BIN = Path(sys.executable).parent
SERVICES = ("cri-frontend", "image-svc", "sandbox-svc", "stream-svc", "decryptor")

_CONFIG = """version = 3
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/cri.sock"
uid = {uid}
gid = {gid}
[bulkhead]
decryption_keys_path = "{directory}/keys"
[bulkhead.metrics_ports]
{ports}
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{directory}/certs.d"
"""

#: What `bulkhead up` does, with a directory of programs of the test's choice.
_DRIVER = """import sys
from pathlib import Path
from bulkhead.supervisor.__main__ import become
become(sys.argv[1], Path(sys.argv[2]))
"""

_GRPC = """#!{python}
import os, sys, time
from bulkhead import config, log, metrics, paths, rpc, service
from bulkhead.proto.runtime.v1 import api_pb2 as cri, api_pb2_grpc as cri_grpc
name = "{name}"
stop = service.StopSignal()
loaded = config.load(sys.argv[2])
log.setup(name, loaded.debug.level, loaded.debug.format).info("stand-in")
class Both(cri_grpc.RuntimeServiceServicer, cri_grpc.ImageServiceServicer):
    def Status(self, request, context):
        answer = cri.StatusResponse()
        answer.status.conditions.add(type="NetworkReady", status=True)
        return answer
    def ListPodSandbox(self, request, context):
        return cri.ListPodSandboxResponse()
    def ListImages(self, request, context):
        return cri.ListImagesResponse()
    @rpc.long_call
    def StopContainer(self, request, context):
        # Its container is a file that ends it once it is there.
        print("StopContainer has begun", file=sys.stderr, flush=True)
        while not os.path.exists(request.container_id):
            time.sleep(0.1)
        return cri.StopContainerResponse()
def register(server):
    cri_grpc.add_RuntimeServiceServicer_to_server(Both(), server)
    cri_grpc.add_ImageServiceServicer_to_server(Both(), server)
metrics.serve(name, list, port=loaded.bulkhead.metrics_ports.get(name, -1))
server = rpc.server(register, str(paths.service_socket(loaded.state, name)), 0o660)
stop.wait()
server.stop(0.5).wait()
"""

_SEQPACKET = """#!{python}
import signal, sys
from bulkhead import config, paths, seqpacket
loaded = config.load(sys.argv[2])
path = {path}
listener = seqpacket.listen(str(path))
print("{name} listens", file=sys.stderr, flush=True)
signal.sigwait([signal.SIGTERM]) if signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) is not None else None
"""


@dataclass
class SmallStack:
    """One such stack in a scratch directory."""

    uid: int = 0
    gid: int = 0
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bhs")))
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in SERVICES})
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def state(self) -> Path:
        """The state directory proper."""
        return self.directory / "state" / "io.bulkhead"

    @property
    def address(self) -> Path:
        """The CRI socket's configured path."""
        return self.directory / "cri.sock"

    @property
    def programs(self) -> Path:
        """Where the stack's programs are."""
        return self.directory / "bin"

    @property
    def log(self) -> str:
        """Everything the stack wrote so far."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def prepare(self) -> None:
        """Write configuration, keys directory and programs."""
        self.directory.chmod(0o711)
        for name in ("keys", "certs.d"):
            (self.directory / name).mkdir(exist_ok=True)
        self.programs.mkdir(exist_ok=True)
        lines = "\n".join(f"{name} = {port}" for name, port in self.ports.items())
        config = _CONFIG.format(directory=self.directory, ports=lines, uid=self.uid, gid=self.gid)
        (self.directory / "config.toml").write_text(config)
        for name in ("cri-frontend", "decryptor"):
            shutil.copy(BIN / name, self.programs / name)
        for name in ("image-svc", "sandbox-svc", "stream-svc"):
            self.program(name, _GRPC.format(python=sys.executable, name=name))
        for name, path in (
            ("image-svc-unpack", "paths.unpack_socket(loaded.state)"),
            ("bulkhead-shim-zygote", "paths.zygote_socket(loaded.state)"),
        ):
            self.program(name, _SEQPACKET.format(python=sys.executable, name=name, path=path))

    def program(self, name: str, text: str) -> None:
        """Put a program in place."""
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def command(self) -> list[str]:
        """Return what runs the supervisor."""
        return [sys.executable, "-c", _DRIVER, f"{self.directory}/config.toml", str(self.programs)]

    def start(self, timeout: float = 90) -> None:
        """Start it and wait for the line that says it is ready."""
        seen = len(self.log)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.wait(lambda: " is ready after " in self.log[seen:], timeout)

    def wait(self, true: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until something holds while the supervisor runs."""
        end = time.monotonic() + timeout
        while not true():
            assert self.process is not None
            assert self.process.poll() is None, f"the supervisor ended:\n{self.log[-4000:]}"
            assert time.monotonic() < end, f"not reached in time:\n{self.log[-4000:]}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Tell the supervisor to stop and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def pids(self, program: str) -> list[int]:
        """Return the processes that run one of this stack's programs."""
        path = str(self.programs / program).encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if path in (entry / "cmdline").read_bytes().split(b"\0")[:2]:
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def pid(self, program: str) -> int:
        """Return the one process of a program; a child that has not become another yet is there for a moment."""
        end = time.monotonic() + 30
        while len(found := self.pids(program)) != 1:
            assert time.monotonic() < end, f"{program} runs as {found}:\n{self.log[-4000:]}"
            time.sleep(0.02)
        return found[0]

    def destroy(self) -> None:
        """Stop what still runs, by pid, and remove the scratch directory."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
        for program in self.programs.glob("*"):
            for pid in self.pids(program.name):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


def status(pid: int) -> dict[str, str]:
    """Return /proc/<pid>/status as a mapping."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextmanager
def small_stack(uid: int = 0, gid: int = 0) -> Iterator[SmallStack]:
    """Prepare a stack, hand it to the test, and destroy it."""
    stack = SmallStack(uid, gid)
    stack.prepare()
    try:
        yield stack
    finally:
        stack.destroy()
