"""A stock containerd of its own in a scratch directory: the peer that Bulkhead is compared with."""

import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bulkhead import rpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from support.stack import network

_CONFIG = """version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/cri.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
[plugins."io.containerd.nri.v1.nri"]
plugin_path = "{directory}/nri/plugins"
plugin_config_path = "{directory}/nri/conf.d"
socket_path = "{directory}/nri/run/nri.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
{runtime}
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "{default}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
{more}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/certs.d"
"""


@dataclass
class Containerd:
    """A running containerd; use it as a context manager."""

    registry: str
    binary: str
    path: str
    number: int = 99
    default: str = "runc"
    more: str = ""
    #: Options of the CRI's own table.
    runtime: str = ""
    #: What starts it: a program and arguments that end in running the rest.
    wrapper: tuple[str, ...] = ()
    #: The pause image's reference; "" for the registry's pause:1.
    pause: str = ""
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bhctd")))
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """The CRI socket."""
        return f"{self.directory}/cri.sock"

    @property
    def log(self) -> str:
        """Everything containerd wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def __enter__(self) -> "Containerd":
        # The root of a user namespace must be able to search the directory.
        self.directory.chmod(0o711)
        for name in ("cni", "certs.d"):
            (self.directory / name).mkdir()
        hosts = self.directory / "certs.d" / self.registry
        hosts.mkdir()
        (hosts / "hosts.toml").write_text(f'server = "http://{self.registry}"\n')
        (self.directory / "cni" / "10-test.conflist").write_text(network(f"bhc{self.number}", self.number))
        pause = self.pause or f"{self.registry}/pause:1"
        text = _CONFIG.format(
            directory=self.directory, pause=pause, default=self.default, more=self.more, runtime=self.runtime
        )
        (self.directory / "config.toml").write_text(text)
        self.start()
        return self

    def start(self) -> None:
        """Start containerd and wait until its CRI answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, self.binary, "--config", str(self.directory / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": f"{self.path}:/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        stub = self.runtime_service()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"containerd ended:\n{self.log[-4000:]}"
            try:
                stub.Status(cri.StatusRequest(), timeout=5)
            except grpc.RpcError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError(f"containerd does not answer:\n{self.log[-4000:]}")

    def runtime_service(self) -> "cri_grpc.RuntimeServiceStub":
        """Return a client of the runtime service."""
        return cri_grpc.RuntimeServiceStub(rpc.channel(self.address))

    def image_service(self) -> "cri_grpc.ImageServiceStub":
        """Return a client of the image service."""
        return cri_grpc.ImageServiceStub(rpc.channel(self.address))

    def kill(self) -> None:
        """Kill -9 the daemon; its shims go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *error: object) -> None:
        try:
            runtime = self.runtime_service()
            for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items:
                runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
                runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
        finally:
            assert self.process is not None
            self.process.terminate()
            self.process.wait(60)
            if str(self.directory) not in Path("/proc/self/mountinfo").read_text():
                shutil.rmtree(self.directory)
