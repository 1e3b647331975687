"""The default seccomp profile as both runtimes enforce it, and crun with the filter compiled beforehand."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.hardware import ConfiguredHardware
from sandbox_svc.oci import bpf
from sandbox_svc.oci.host import LinuxHost
from sandbox_svc.oci.model import ContainerInput, HostFacts, RuntimeFacts, SandboxFiles
from sandbox_svc.oci.spec import container_spec, exec_process

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the probe knows x86_64's numbers"),
]

PROBE = """
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    libc.syscall(number, *args)
    return ctypes.get_errno()
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "mode": int(status["Seccomp"]),
    "getpid": call(39),
    "mount": call(165, 0, 0, 0, 0, 0),
    "clone3": call(435, 0, 0),
    "clone_newuser": call(56, 0x10000000, 0, 0, 0, 0),
    "socket_alg": call(41, 38, 5, 0),
    "socket_inet": call(41, 2, 1, 0),
    "unknown": call(999),
}))
"""

#: crun refuses a hybrid cgroup host, so its mount namespace gets one without the empty v2 tree; the host keeps its own.
WITHOUT_HYBRID = (
    "mount --make-rprivate /sys/fs/cgroup; "
    'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"'
)


EXEC = "print([l for l in open('/proc/self/status') if l.startswith('Seccomp:')][0].split()[1])"


def container(machine_facts: HostFacts, runtime_facts: RuntimeFacts) -> dict[str, object]:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="probe"), command=["/usr/bin/python3", "-I", "-S", "-c", PROBE]
    )
    config.linux.security_context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    for path in ("/usr", "/lib", "/lib64"):
        config.mounts.add(container_path=path, host_path=path, readonly=True)
    spec = container_spec(
        ContainerInput(
            id="probe",
            sandbox_id="pod",
            config=config,
            sandbox_config=cri.PodSandboxConfig(),
            image_config={},
            image_name="probe",
            runtime=Runtime(),
            handler=RuntimeHandler(),
            facts=machine_facts,
            runtime_facts=runtime_facts,
            sandbox_pid=1,
            files=SandboxFiles(),
            hardware=ConfiguredHardware(Runtime()),
        )
    )
    spec["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
    return spec


def run_probe(runtime: str, spec: dict[str, object], scratch: Path) -> dict[str, int]:
    bundle = scratch / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    name = f"bulkhead-seccomp-{os.getpid()}-{runtime}"
    spec["linux"]["cgroupsPath"] = f"/{name}"  # type: ignore[index]
    (bundle / "config.json").write_text(json.dumps(spec))
    command = [runtime, "--root", str(scratch / "state"), "run", "--bundle", str(bundle), name]
    if runtime == "crun":
        command = ["unshare", "-m", "--propagation", "unchanged", "sh", "-c", WITHOUT_HYBRID, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return {name: int(value) for name, value in json.loads(done.stdout).items()}


@pytest.mark.parametrize(("runtime", "compiled"), [("runc", False), ("crun", False), ("crun", True)])
def test_denied_calls_fail_as_the_profile_says(runtime: str, compiled: bool, tmp_path: Path) -> None:
    """A process under the default profile is filtered: EPERM outside it, ENOSYS for clone3 and for unknown calls."""
    if shutil.which(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    facts = HostFacts(host=LinuxHost(), cgroup_mode="hybrid", hostname="h", can_lower_oom_score_adj=False)
    spec = container(facts, RuntimeFacts(name=runtime, seccomp_bpf_annotation=compiled))
    assert (bpf.ANNOTATION in spec["annotations"]) is compiled  # type: ignore[operator]
    found = run_probe(runtime, spec, tmp_path)
    unknown = found.pop("unknown")
    assert found == {
        "mode": 2,
        "getpid": 0,
        "mount": 1,
        "clone3": 38,
        "clone_newuser": 1,
        "socket_alg": 1,
        "socket_inet": 0,
    }
    # crun alone says EPERM, over which a newer libc does not fall back; runc and the compiled filter say ENOSYS.
    assert unknown == (38 if compiled or runtime == "runc" else 1)


def test_compiled_filter_is_in_force_without_the_section(tmp_path: Path) -> None:
    """crun enforces the annotation itself, not the section beside it."""
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    facts = HostFacts(host=LinuxHost(), cgroup_mode="hybrid", hostname="h", can_lower_oom_score_adj=False)
    spec = container(facts, dataclasses.replace(RuntimeFacts(name="crun"), seccomp_bpf_annotation=True))
    spec["linux"].pop("seccomp")  # type: ignore[attr-defined]
    found = run_probe("crun", spec, tmp_path)
    assert (found["mode"], found["mount"], found["unknown"]) == (2, 1, 38), sys.version


def test_exec_is_filtered_too(tmp_path: Path) -> None:
    """A process exec'd by crun in a container with the compiled filter runs under it."""
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    facts = HostFacts(host=LinuxHost(), cgroup_mode="hybrid", hostname="h", can_lower_oom_score_adj=False)
    spec = container(facts, dataclasses.replace(RuntimeFacts(name="crun"), seccomp_bpf_annotation=True))
    process = exec_process(spec, ["/usr/bin/python3", "-I", "-S", "-c", EXEC], tty=False)
    spec["process"]["args"] = ["/usr/bin/sleep", "60"]  # type: ignore[index]
    bundle, name = tmp_path / "bundle", f"bulkhead-seccomp-{os.getpid()}-exec"
    (bundle / "rootfs").mkdir(parents=True)
    spec["linux"]["cgroupsPath"] = f"/{name}"  # type: ignore[index]
    (bundle / "config.json").write_text(json.dumps(spec))
    (tmp_path / "process.json").write_text(json.dumps(process))

    def crun(*arguments: str) -> str:
        command = ["unshare", "-m", "--propagation", "unchanged", "sh", "-c", WITHOUT_HYBRID, "sh"]
        command += ["crun", "--root", str(tmp_path / "state"), *arguments]
        # To a file: the container keeps its output open, so a pipe would never end.
        with (tmp_path / "out").open("w+") as out:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=60, check=True)
            out.seek(0)
            return out.read().strip()

    crun("run", "--detach", "--bundle", str(bundle), name)
    try:
        assert crun("exec", "--process", str(tmp_path / "process.json"), name) == "2"
    finally:
        crun("delete", "--force", name)
