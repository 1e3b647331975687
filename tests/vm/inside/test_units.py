"""The units of deploy/systemd under a real systemd: who runs as what, what survives, and what is out of reach."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from bulkhead.launch.linux import CAPABILITIES
from bulkhead.launch.plan import UNPACK_CAPABILITIES
from support.crictl import Crictl
from vm.units import KEYS, STATE, SYSTEM, Pod, inside, journal, main_pid, run_pod, systemctl, wait_answering

pytestmark = pytest.mark.root

#: Service -> (user, names of its capabilities; None for all).
SERVICES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "cri-frontend": ("bulkhead-frontend", ()),
    "image-svc": ("bulkhead-image", ()),
    "image-svc-unpack": ("root", UNPACK_CAPABILITIES),
    "sandbox-svc": ("root", None),
    "stream-svc": ("bulkhead-stream", ()),
    "decryptor": ("bulkhead-decryptor", ()),
    "shims": ("root", None),
}
#: The worst figure of `systemd-analyze security` that each may have; sandbox-svc and the shims are root on purpose.
EXPOSURE = {"cri-frontend": 1.5, "image-svc": 1.6, "image-svc-unpack": 3.5, "stream-svc": 1.6, "decryptor": 1.2}
EXPOSURE |= {"sandbox-svc": 10.0, "shims": 10.0}


@pytest.fixture(scope="module")
def pod(crictl: Crictl, registry: str) -> Pod:
    """One pod that lives through all tests of this module."""
    return run_pod(crictl, registry, "units")


def test_all_are_active_as_whom_they_should(crictl: Crictl) -> None:
    """Every unit is active, under its user, with its capabilities and no way to more."""
    for service, (user, capabilities) in SERVICES.items():
        assert systemctl("is-active", f"bulkhead-{service}.service") == "active"
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{main_pid(service)}/status").read_text().splitlines()
            if ":" in line
        )
        owner = subprocess.run(["id", "-u", user], check=True, capture_output=True, text=True, timeout=10).stdout
        assert set(status["Uid"].split()) == {owner.strip()}, service
        if capabilities is None:
            assert int(status["CapEff"], 16) == full_set()
            continue
        wanted = sum(1 << CAPABILITIES[name] for name in capabilities)
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert int(status[kind], 16) == wanted, (service, kind)
        assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2"), service


def full_set() -> int:
    return (1 << (int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1)) - 1


def test_systemd_has_nothing_to_say(crictl: Crictl) -> None:
    """`systemd-analyze verify` finds nothing in the files, and systemd knew every word of them when it ran them."""
    files = sorted(map(str, SYSTEM.glob("bulkhead*")))
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    said = [line for line in journal("-b", "_PID=1").splitlines() if "bulkhead" in line]
    assert said
    assert [line for line in said if re.search("(?i)unknown|ignoring|not supported|failed to parse", line)] == []


def test_exposure() -> None:
    """`systemd-analyze security` rates each unit no worse than noted here."""
    for service, worst in EXPOSURE.items():
        command = ["systemd-analyze", "security", "--no-pager", f"bulkhead-{service}.service"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        (figure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", shown)
        print(service, figure)
        assert float(figure) <= worst, service


def test_keys_are_out_of_reach(crictl: Crictl) -> None:
    """The services that face the world do not see the keys; the decryptor sees its copy only, and has no network."""
    for service in ("cri-frontend", "image-svc", "image-svc-unpack", "stream-svc", "decryptor"):
        # As root, in the service's mount namespace: more than the service itself may do.
        seen = inside(service, "--mount", "ls", "-A", str(KEYS))
        assert "secret.pem" not in seen, service
    copy = "/run/credentials/bulkhead-decryptor.service/keys_secret.pem"
    assert inside("decryptor", "--mount", "cat", copy) == "not a key\n"
    assert re.findall(r"^\d+: (\w+)", inside("decryptor", "--net", "ip", "-o", "link"), re.MULTILINE) == ["lo"]


def test_shims_are_apart(pod: Pod) -> None:
    """The pod's shim is in the shims' unit, its containers are in the pod's slice, neither in a service's cgroup."""
    shim = Path(f"/proc/{pod.pid}/stat").read_text().rpartition(")")[2].split()[1]
    assert "/bulkhead-shims.service" in Path(f"/proc/{shim}/cgroup").read_text()
    scope = f"units.slice/units-units.slice/cri-containerd-{pod.container}.scope"
    assert scope in Path(f"/proc/{pod.pid}/cgroup").read_text()
    pod.lives()


def test_metrics_of_all_five(crictl: Crictl) -> None:
    """Each service answers on its loopback port, the decryptor through the socket that systemd hands it."""
    for port in range(9470, 9475):
        for path in ("metrics", "healthz", "readyz"):
            command = ["curl", "-sS", "--fail", "-m", "20", f"http://127.0.0.1:{port}/{path}"]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert shown.returncode == 0, (port, path, shown.stderr)


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back(pod: Pod, service: str) -> None:
    """kill -9 of any service: systemd starts it anew, and the pod has not noticed."""
    old = main_pid(service)
    systemctl("kill", "--kill-whom=main", "--signal=KILL", f"bulkhead-{service}.service")
    deadline = time.monotonic() + 60
    while main_pid(service) in (0, old):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_answering(pod.crictl)
    pod.lives()


def test_a_restart_of_sandbox_svc(pod: Pod) -> None:
    """`systemctl restart` of it is a pause in answers and nothing else."""
    systemctl("restart", "bulkhead-sandbox-svc.service")
    wait_answering(pod.crictl)
    pod.lives()


def test_the_target_stops_and_pods_go_on(pod: Pod, registry: str) -> None:
    """Stopping the target stops every service within seconds and no pod; started again, it finds them."""
    began = time.monotonic()
    systemctl("stop", "bulkhead.target")
    services = [f"bulkhead-{service}.service" for service in SERVICES if service != "shims"]
    while "active" in (states := {systemctl("show", "-p", "ActiveState", "--value", unit) for unit in services}):
        assert time.monotonic() - began < 60, states
        time.sleep(0.2)
    print(f"stopped in {time.monotonic() - began:.1f} s")
    assert systemctl("is-active", "bulkhead-shims.service") == "active"
    pod.writes()
    systemctl("start", "bulkhead.target", timeout=300)
    wait_answering(pod.crictl)
    pod.lives()
    second = run_pod(pod.crictl, registry, "later")
    second.lives()


def test_a_new_zygote_beside_old_shims(pod: Pod, registry: str) -> None:
    """An upgrade restarts the shims' unit: running pods keep their shims, new ones get the new zygote's."""
    systemctl("restart", "bulkhead-shims.service")
    wait_answering(pod.crictl)
    pod.lives()
    run_pod(pod.crictl, registry, "upgraded").lives()


def test_a_killed_shim_is_that_pods_end(pod: Pod, registry: str) -> None:
    """A shim killed: its container ends with 137, scope and runtime state go, and another pod lives on."""
    victim = run_pod(pod.crictl, registry, "victim")
    shim = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[1]
    subprocess.run(["kill", "-9", shim], check=True, timeout=10)
    deadline = time.monotonic() + 60
    while (status := pod.crictl.json("inspect", victim.container)["status"])["state"] != "CONTAINER_EXITED":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status["exitCode"] == 137
    pod.crictl("rmp", "-f", victim.id)
    assert not list(STATE.glob(f"runtime/*/*/{victim.container}"))
    units = systemctl("list-units", "--all", "--plain", "--no-legend", "cri-containerd-*")
    assert victim.container not in units
    assert pod.container in units
    pod.lives()


def test_nothing_failed(crictl: Crictl) -> None:
    """After all this no unit of ours is in state failed, and the journal shows no traceback."""
    assert "bulkhead" not in systemctl("list-units", "--failed", "--plain", "--no-legend")
    assert "Traceback" not in journal("-u", "bulkhead*")
