"""Bulkhead's units in the machine: installed, started, asked."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from support.crictl import Crictl
from support.stack import network

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
SYSTEM = Path("/etc/systemd/system")
KEYS = Path("/etc/containerd/ocicrypt/keys")
STATE = Path("/run/bulkhead/io.bulkhead")
#: Where programs that a service starts leave word: one of the two directories that the units can write to.
WORD = Path("/run/bulkhead/vmtest")
PROVIDERS = Path("/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf")
CREDENTIAL_PROVIDERS = Path("/etc/kubernetes/credential-providers.yaml")
CREDENTIAL_PROGRAMS = Path("/usr/libexec/credential-providers")

CONFIG = """version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{registry}/pause:1"
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "/usr/sbin/runc"
SystemdCgroup = true
[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
returns = "application/vnd.oci.image.layer.v1.tar+gzip"
path = "ctd-decoder"
args = ["--decryption-keys-path", "{keys}"]
env = ["OCICRYPT_KEYPROVIDER_CONFIG={providers}"]
[bulkhead]
image_credential_provider_config = "{credentials}"
image_credential_provider_bin_dir = "{programs}"
"""
CREDENTIAL_CONFIG = """apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: vm-provider
    matchImages: ["{address}"]
    defaultCacheDuration: "10m"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
"""


def install(registry: str) -> None:
    """Install units, users and directories as deploy/README.md says, and a configuration; start nothing."""
    for unit in DEPLOY.glob("bulkhead*"):
        shutil.copy(unit, SYSTEM)
    for kind in ("sysusers.d", "tmpfiles.d"):
        Path("/etc", kind).mkdir(exist_ok=True)
        for file in (DEPLOY / kind).iterdir():
            shutil.copy(file, Path("/etc", kind))
    subprocess.run(["systemd-sysusers"], check=True, timeout=60)
    subprocess.run(["systemd-tmpfiles", "--create", "bulkhead.conf"], check=True, timeout=60)
    for directory in (Path("/etc/bulkhead"), Path("/etc/cni/net.d"), CREDENTIAL_PROVIDERS.parent, CREDENTIAL_PROGRAMS):
        directory.mkdir(parents=True, exist_ok=True)
    WORD.mkdir(exist_ok=True)
    WORD.chmod(0o1777)
    places = {"keys": KEYS, "providers": PROVIDERS, "credentials": CREDENTIAL_PROVIDERS}
    text = CONFIG.format(registry=registry, programs=CREDENTIAL_PROGRAMS, **places)
    Path("/etc/bulkhead/config.toml").write_text(text)
    CREDENTIAL_PROVIDERS.write_text(CREDENTIAL_CONFIG.format(address="private.example"))
    Path("/etc/cni/net.d/10-test.conflist").write_text(network("bhunits", 89))
    (KEYS / "secret.pem").write_text("not a key\n")
    (KEYS / "secret.pem").chmod(0o600)
    systemctl("daemon-reload")


def systemctl(*words: str, timeout: float = 120) -> str:
    """Run systemctl and return what it said."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def main_pid(service: str) -> int:
    """Return the pid of a unit's main process, 0 if it has none."""
    return int(systemctl("show", "--property=MainPID", "--value", f"bulkhead-{service}.service"))


def inside(service: str, namespace: str, *command: str) -> str:
    """Return what a command says, as root, in a namespace of a service: `--mount`, `--net`."""
    line = ["nsenter", "-t", str(main_pid(service)), namespace, *command]
    return subprocess.run(line, capture_output=True, text=True, timeout=20, check=False).stdout


def journal(*selection: str) -> str:
    """Return the journal's messages of a selection: `-u UNIT`, `_PID=1`."""
    command = ["journalctl", "--no-pager", "-o", "cat", *selection]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def eventually(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.2)


def wait_answering(crictl: Crictl, seconds: float = 90) -> None:
    """Wait until both services behind the frontend answer."""
    deadline = time.monotonic() + seconds
    while any(crictl.run(word, check=False).returncode for word in ("pods", "images")):
        assert time.monotonic() < deadline, systemctl("list-units", "--all", "--no-pager", "bulkhead*")
        time.sleep(0.5)


@dataclass
class Pod:
    """A pod with one container that writes a line a second and has a file of its own in its writable layer."""

    crictl: Crictl
    id: str
    #: Its configuration's file.
    file: str
    container: str
    pid: int
    log: Path
    lines: int = field(default=0)

    def lives(self) -> None:
        """Fail unless the container is the process it was, its layer is whole, and its log goes on."""
        status = json.loads(self.crictl("inspect", self.container))
        assert (status["status"]["state"], status["info"]["pid"]) == ("CONTAINER_RUNNING", self.pid)
        assert self.crictl("exec", "-s", self.container, "cat", "/mark") == "mine"
        assert self.crictl("exec", self.container, "echo", "streamed") == "streamed"
        self.writes()

    def writes(self) -> None:
        """Fail unless the log grows, each line being the successor of the one before."""
        deadline = time.monotonic() + 20
        while len(numbers := [int(line.split()[-1]) for line in self.log.read_text().splitlines()]) <= self.lines + 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert numbers == list(range(len(numbers)))
        self.lines = len(numbers)

    def create(self, name: str, image: str, command: str) -> str:
        """Make another container in the pod, to be started by the caller, and return its id."""
        return create(self.crictl, self.id, self.file, name, image, command)


def run_pod(crictl: Crictl, registry: str, name: str) -> Pod:
    """Run such a pod."""
    config = {
        "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default", "attempt": 0},
        "log_directory": f"/var/log/pods/{name}",
        "linux": {"cgroup_parent": f"units-{name}.slice"},
    }
    file = crictl.file(f"{name}.json", config)
    ident = crictl("runp", file)
    script = "echo -n mine > /mark; n=0; while :; do echo $n; n=$((n+1)); sleep 1; done"
    container = crictl("start", create(crictl, ident, file, "main", f"{registry}/busybox:1", script))
    pid = json.loads(crictl("inspect", container))["info"]["pid"]
    return Pod(crictl, ident, file, container, pid, Path(f"/var/log/pods/{name}/main.log"))


def create(crictl: Crictl, pod: str, file: str, name: str, image: str, command: str) -> str:
    """Make a container that runs a shell command and return its id."""
    config = {
        "metadata": {"name": name},
        "image": {"image": image},
        "command": ["sh", "-c", command],
        "log_path": f"{name}.log",
        "linux": {},
    }
    return crictl("create", pod, crictl.file(f"{pod}-{name}.json", config), file)
