"""sandbox-svc alone, with the real zygote, shims, runtimes and CNI plugins, and a stand-in for image-svc."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead import paths, rpc, ttrpc
from bulkhead.config import load
from bulkhead.errors import Unavailable
from bulkhead.proto import shim_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from support import fake_images
from support.pods import Pods
from support.stack import network

BIN = Path(sys.executable).parent

_CONFIG = """version = 3
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/cri.sock"
[debug]
level = "debug"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
netns_mounts_under_state_dir = true
{runtime}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{bins}"]
conf_dir = "{directory}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "{default}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{binary}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
[plugins.'io.containerd.nri.v1.nri']
plugin_path = "{directory}/nri/plugins"
plugin_config_path = "{directory}/nri/conf.d"
socket_path = "{directory}/nri/run/nri.sock"
plugin_registration_timeout = "30s"
plugin_request_timeout = "{nri_timeout}"
{more}
[bulkhead]
nri_exec_conf_path = "{directory}/nri/conf.json"
nri_exec_conf_dir = "{directory}/nri/resource.d"
nri_exec_bin_dir = "{directory}/nri/bin"
nri_exec_timeout = "4s"
[bulkhead.metrics_ports]
sandbox-svc = -1
"""


@dataclass
class Sandbox:
    """A running sandbox-svc; use it as a context manager."""

    default: str = "runc"
    number: int = 91
    runtime: str = ""
    more: str = ""
    bins: str = "/usr/lib/cni"
    binary: str = "/usr/sbin/runc"
    #: How long an NRI plugin may take over a request, which it needs on a busy machine.
    nri_timeout: str = "20s"
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bhs")))
    service: "subprocess.Popen[bytes] | None" = None
    zygote: "subprocess.Popen[bytes] | None" = None

    @property
    def state(self) -> Path:
        """Where sockets and bundles are."""
        return self.directory / "state" / "io.bulkhead"

    @property
    def root(self) -> Path:
        """Where the database is."""
        return self.directory / "root" / "io.bulkhead"

    @property
    def log(self) -> str:
        """Everything the processes wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def __enter__(self) -> "Sandbox":
        (self.directory / "cni").mkdir()
        (self.directory / "cni" / "10-test.conflist").write_text(network(f"bh{self.number}", self.number))
        (self.directory / "config.toml").write_text(
            _CONFIG.format(
                directory=self.directory,
                pause=fake_images.PAUSE,
                default=self.default,
                runtime=self.runtime,
                bins=self.bins,
                binary=self.binary,
                more=self.more,
                nri_timeout=self.nri_timeout,
            )
        )
        config = load(str(self.directory / "config.toml"))
        assert config.state == self.state, config.state
        self.state.mkdir(parents=True)
        self.images = fake_images.FakeImages(config.root, self.state).start()
        (self.state / "zygote").mkdir()
        self.zygote = self._run("bulkhead-shim-zygote")
        self.start()
        return self

    def start(self) -> None:
        """Start sandbox-svc and wait until it answers."""
        self.service = self._run("sandbox-svc")
        self.wait_ready()

    def wait_ready(self, timeout: float = 90) -> None:
        """Wait until RuntimeConfig is answered."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            assert self.service is not None
            assert self.service.poll() is None, f"sandbox-svc ended:\n{self.log[-6000:]}"
            with contextlib.suppress(Exception):
                self.stub().RuntimeConfig(cri.RuntimeConfigRequest(), timeout=5)
                return
            time.sleep(0.02)
        raise AssertionError(f"sandbox-svc does not answer:\n{self.log[-6000:]}")

    def kill(self) -> None:
        """Kill -9 sandbox-svc."""
        assert self.service is not None
        self.service.kill()
        self.service.wait(30)

    def restart(self) -> None:
        """Kill -9 sandbox-svc and start it anew."""
        self.kill()
        self.start()

    def stub(self) -> "cri_grpc.RuntimeServiceStub":
        """Return a client of the runtime service."""
        return cri_grpc.RuntimeServiceStub(rpc.channel(str(paths.service_socket(self.state, "sandbox-svc"))))

    def pods(self, handler: str = "") -> Pods:
        """Return a maker of pods."""
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        return Pods(self.stub(), fake_images.BUSYBOX, logs, handler)

    def shims(self) -> list[int]:
        """Return the processes of the shims that answer."""
        found = []
        for path in (self.state / "s").glob("*/task"):
            with contextlib.suppress(Unavailable):
                client = ttrpc.Client(str(path))
                info = client.call("bulkhead.shim.v1.Shim", "Info", shim_pb2.InfoRequest(), shim_pb2.InfoResponse, 20)
                found.append(info.pid)
                client.close()
        return found

    def _run(self, script: str) -> "subprocess.Popen[bytes]":
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(BIN / script), "--config", str(self.directory / "config.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.remove_all()
        for process in (self.service, self.zygote):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(30)
        self.images.stop()
        if os.environ.get("BULKHEAD_KEEP"):
            print(f"kept: {self.directory}")
            return
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(f"/run/bh{self.number}", ignore_errors=True)

    def remove_all(self) -> None:
        """Stop and remove every pod, and wait until the tidying behind the answers is done."""
        stub = self.stub()
        for pod in stub.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items:
            stub.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            stub.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.remains():
            time.sleep(0.02)

    def wait_shim_knows_exit(self, ident: str) -> None:
        """Wait until a container's shim has written its exit down, as it does also while sandbox-svc is not there."""
        deadline = time.monotonic() + 60
        while not (paths.bundle(self.state, ident) / "exit.json").exists():
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.02)

    def remains(self) -> list[str]:
        """Return what pods have left below root and state."""
        homes = [self.state / name for name in ("bundles", "s", "shm", "netns")]
        homes += [self.root / name for name in ("sandboxes", "containers")]
        return [str(path) for home in homes for path in home.glob("*")]
