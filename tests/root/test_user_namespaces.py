"""Pods with user namespaces: their root is nobody on the node, and they see their own files as root's."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from sandbox_svc import usermap
from support.nri import eventually
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

HOST, LENGTH = 300_000, 65_536
MAPPING = [cri.IDMapping(container_id=0, host_id=HOST, length=LENGTH)]
#: A handler whose runtime has no `features` command, as Debian 12's crun: what it maps is not known.
SILENT = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.silent]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.silent.options]
BinaryName = "{binary}"
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox-svc with a runc that maps the ids of mounts, the node's crun, and a runtime that does not say."""
    runc = build("runc")["runc"]
    prepared = Sandbox(number=96, binary=str(runc))
    silent = prepared.directory / "silent-runc"
    silent.write_text(f'#!/bin/sh\n[ "$1" = features ] && exit 1\nexec {runc} "$@"\n')
    silent.chmod(0o755)
    prepared.more = SILENT.format(binary=silent)
    # The container's root, another user of the node, must reach its rootfs.
    prepared.directory.chmod(0o711)
    with prepared as running:
        yield running


def crun_maps_ids() -> bool:
    """Ask the node's crun itself: Debian 12's has no such command, Debian 13's maps."""
    told = subprocess.run(["/usr/bin/crun", "features"], capture_output=True, check=False, timeout=30)
    if told.returncode != 0:
        return False
    return bool(json.loads(told.stdout)["linux"]["mountExtensions"]["idmap"]["enabled"])


def options(mapping: list[cri.IDMapping] = MAPPING, network: "cri.NamespaceMode" = cri.POD) -> cri.NamespaceOption:
    users = cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping)
    return cri.NamespaceOption(userns_options=users, network=network)


def pod_linux(wanted: cri.NamespaceOption) -> cri.LinuxPodSandboxConfig:
    return cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=wanted))


def linux(wanted: cri.NamespaceOption) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=wanted))


def left(sandbox: Sandbox) -> list[str]:
    """Return the pins and clones that still are there."""
    return [str(path) for name in ("userns", "idmapped") for path in (sandbox.state / name).glob("*")]


def test_status_says_which_handlers_map_ids(sandbox: Sandbox) -> None:
    """The feature is the runtime's own word and the file system's."""
    answer = sandbox.stub().Status(cri.StatusRequest(), timeout=30)
    features = {handler.name: handler.features.user_namespaces for handler in answer.runtime_handlers}
    assert features == {"": True, "runc": True, "crun": crun_maps_ids(), "silent": False}
    assert answer.features.user_namespaces_host_network
    assert not usermap.supported(Path("/proc"))


@pytest.mark.parametrize("handler", ["runc", "crun"])
@pytest.mark.parametrize("network", [cri.POD, cri.NODE])
def test_root_inside_is_nobody_outside(
    sandbox: Sandbox, network: cri.NamespaceMode, handler: str, tmp_path: Path
) -> None:
    """Files of the image are root's inside, can be changed, and what is written goes to mapped ids only."""
    if handler == "crun" and not crun_maps_ids():
        pytest.skip("this crun does not map the ids of mounts")
    wanted = options(network=network)
    pods = sandbox.pods(handler)
    config = pods.config(f"users-{handler}-{network}", linux=pod_linux(wanted))
    pod = pods.run(config)
    (tmp_path / "volume").mkdir()
    volume = cri.Mount(
        container_path="/volume", host_path=str(tmp_path / "volume"), uidMappings=MAPPING, gidMappings=MAPPING
    )
    script = "echo told > /dev/stdout; exec sleep 1000"
    name = f"main-{handler}-{network}"
    container = pods.start(pod, config, name, script, linux=linux(wanted), mounts=[volume])

    def output(*command: str) -> str:
        done = pods.exec(container, *command)
        assert done.exit_code == 0, done.stderr
        return done.stdout.decode().strip()

    assert output("cat", "/proc/self/uid_map").split() == ["0", str(HOST), str(LENGTH)]
    assert output("stat", "-c", "%u:%g", "/bin/busybox", "/etc/hosts", "/var/www") == "0:0\n0:0\n0:0"
    output("sh", "-c", "echo more >> /etc/passwd; touch /new /volume/file; mkdir /bin/here; chown 5:6 /volume/file")
    assert (tmp_path / "volume" / "file").stat().st_uid == 5
    assert Path(f"/proc/{_pid(sandbox, container)}").stat().st_uid == HOST
    assert {path.stat().st_uid for path in sandbox.root.glob("snapshots/*/fs/new")} == {HOST}
    deadline = time.monotonic() + 60
    while "told" not in (log := (pods.logs / f"{name}.log").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "told" in log
    assert [path for path in left(sandbox) if "idmapped" in path] == []
    pods.remove(pod)
    sandbox.remove_all()
    eventually(lambda: left(sandbox) == [])


def _pid(sandbox: Sandbox, container: str) -> int:
    """Return the container's first process."""
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(sandbox.stub().ContainerStatus(request, timeout=30).info["info"])["pid"])


def test_two_pods_share_layers_under_different_ids(sandbox: Sandbox) -> None:
    """The same image serves pods whose roots are different users."""
    pods, made = sandbox.pods(), []
    for host in (400_000, 500_000):
        wanted = options([cri.IDMapping(container_id=0, host_id=host, length=LENGTH)])
        config = pods.config(f"share-{host}", linux=pod_linux(wanted))
        made.append(pods.run(config))
        container = pods.start(made[-1], config, f"c{host}", "sleep 1000", linux=linux(wanted))
        assert pods.exec(container, "stat", "-c", "%u", "/bin/busybox").stdout == b"0\n"
        assert pods.exec(container, "cat", "/proc/self/gid_map").stdout.split()[1] == str(host).encode()
    for pod in made:
        pods.remove(pod)


def test_what_cannot_be_is_refused(sandbox: Sandbox) -> None:
    """A handler that cannot map ids, and mappings that cannot be, are named and leave nothing behind."""
    for handler in ["silent"] if crun_maps_ids() else ["silent", "crun"]:
        pods = sandbox.pods(handler)
        with pytest.raises(grpc.RpcError, match=f"handler '{handler}' supports no user namespaces"):
            pods.run(pods.config(f"no-{handler}", linux=pod_linux(options())))
    pods = sandbox.pods()
    shifted = pods.config("no-root", linux=pod_linux(options([cri.IDMapping(container_id=1, host_id=1, length=9)])))
    with pytest.raises(grpc.RpcError, match="container_id 0 is not mapped"):
        pods.run(shifted)
    assert left(sandbox) == []
