"""A whole stack of its own in a scratch directory: `bulkhead up` with the real parts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bulkhead import rpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from support.ports import free_port

SERVICES = ("cri-frontend", "image-svc", "sandbox-svc", "stream-svc", "decryptor")
BIN = Path(sys.executable).parent
#: Seconds for a stack to be ready; an emulated machine on a busy host takes more than this one.
PATIENCE = float(os.environ.get("BULKHEAD_TEST_PATIENCE", "60"))

_CONFIG = """version = 3
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/cri.sock"
[debug]
level = "debug"
[plugins.'io.containerd.cri.v1.images']
{images}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{directory}/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
netns_mounts_under_state_dir = true
{runtime}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{directory}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "{default}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.default]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
[plugins.'io.containerd.nri.v1.nri']
plugin_path = "{directory}/nri/plugins"
plugin_config_path = "{directory}/nri/conf.d"
socket_path = "{directory}/nri/run/nri.sock"
{more}
[bulkhead]
decryption_keys_path = "{directory}/keys"
nri_exec_conf_path = "{directory}/nri/conf.json"
nri_exec_conf_dir = "{directory}/nri/resource.d"
{own}
[bulkhead.metrics_ports]
{ports}
"""


def network(bridge: str, number: int) -> str:
    """Return a dual-stack bridge network with masquerade and host ports, as a node has."""
    ranges = [[{"subnet": f"10.{number}.0.0/16"}], [{"subnet": f"fd00:{number}::/64"}]]
    bridge_plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/" + bridge,
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": bridge, "plugins": [bridge_plugin, portmap]})


@dataclass
class Stack:
    """One running stack; use it as a context manager."""

    registry: str
    default: str = "runc"
    number: int = 88
    images: str = ""
    runtime: str = ""
    more: str = ""
    #: Options of `[bulkhead]`.
    own: str = ""
    #: What starts it: a program and arguments that end in running the rest.
    wrapper: tuple[str, ...] = ()
    #: The pause image's reference; "" for the registry's pause:1.
    pause: str = ""
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bh")))
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in SERVICES})
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """The CRI socket."""
        return f"{self.directory}/cri.sock"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "config.toml"

    @property
    def log(self) -> str:
        """Everything the stack wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def write_config(self) -> None:
        """Write the configuration and the network."""
        # The services' users must be able to search the directory.
        self.directory.chmod(0o711)
        for name in ("cni", "certs.d", "keys"):
            (self.directory / name).mkdir(exist_ok=True)
        (self.directory / "cni" / "10-test.conflist").write_text(network(f"bh{self.number}", self.number))
        self.config.write_text(
            _CONFIG.format(
                directory=self.directory,
                pause=self.pause or f"{self.registry}/pause:1",
                default=self.default,
                images=self.images,
                runtime=self.runtime,
                more=self.more,
                own=self.own,
                ports="\n".join(f"{name} = {port}" for name, port in self.ports.items()),
            )
        )

    def __enter__(self) -> "Stack":
        self.write_config()
        self.start()
        return self

    def start(self, timeout: float = PATIENCE) -> None:
        """Start the stack and wait until the runtime and the network are ready."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, str(BIN / "bulkhead"), "up", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_ready(timeout)

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until Status says RuntimeReady and NetworkReady."""
        deadline, state = time.monotonic() + timeout, "no answer"
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, f"bulkhead up ended:\n{self.log[-4000:]}"
            if os.path.exists(self.address):
                try:
                    status = self.runtime_service().Status(cri.StatusRequest(), timeout=5).status
                except grpc.RpcError as error:
                    state = str(error)
                else:
                    # image-svc is not part of RuntimeReady, but a test that begins with a pull wants it there.
                    if all(condition.status for condition in status.conditions):
                        return
                    state = str(status)
            time.sleep(0.05)
        raise AssertionError(f"not ready after {timeout} s: {state}\n{self.log[-4000:]}")

    def runtime_service(self) -> "cri_grpc.RuntimeServiceStub":
        """Return a client of the runtime service."""
        return cri_grpc.RuntimeServiceStub(rpc.channel(self.address))

    def image_service(self) -> "cri_grpc.ImageServiceStub":
        """Return a client of the image service."""
        return cri_grpc.ImageServiceStub(rpc.channel(self.address))

    def pid(self, service: str) -> int:
        """Return the process of a service, found by its command line, which its forked children share."""
        needle = str(self.directory).encode()
        found: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            names = {os.path.basename(argument) for argument in arguments[:3]}
            if service.encode() in names and any(needle in argument for argument in arguments):
                found[int(entry.name)] = parent
        for pid, parent in found.items():
            if parent not in found:
                return pid
        raise AssertionError(f"{service} is not running:\n{self.log[-2000:]}")

    def kill(self, service: str) -> int:
        """Kill -9 a service and return the pid it had."""
        pid = self.pid(service)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, service: str, old: int, timeout: float = 90) -> None:
        """Wait until the supervisor has started a service anew and the stack is ready."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if self.pid(service) != old:
                    self.wait_ready(timeout)
                    return
            except AssertionError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{service} was not started anew:\n{self.log[-4000:]}")

    def remove_pods(self) -> None:
        """Stop and remove every pod."""
        runtime = self.runtime_service()
        for pod in runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items:
            runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)

    def stop(self, timeout: float = 90) -> int:
        """Tell the stack to stop and return its exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout)
        self.process = None
        return status

    def __exit__(self, *error: object) -> None:
        try:
            if self.process is not None and self.process.poll() is None:
                self.remove_pods()
        finally:
            self.stop()
            if keep := os.environ.get("BULKHEAD_KEEP_LOG"):
                shutil.copy(self.directory / "log", keep)
            # A directory that still holds a mount is left for the leak check to find.
            if str(self.directory) not in Path("/proc/self/mountinfo").read_text():
                shutil.rmtree(self.directory)
