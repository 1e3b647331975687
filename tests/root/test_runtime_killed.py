"""An OCI runtime that is killed in its calls, as the kernel does where memory is short: nothing of it stays."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

#: While `deadly` is there, a create is killed at its end and a delete at its beginning.
RUNTIME = """#!/bin/sh
deadly={directory}/deadly
case " $* " in
*" create "*) /usr/sbin/runc "$@" && [ ! -e $deadly ] && exit 0 ;;
*" delete "*) [ -e $deadly ] || exec /usr/sbin/runc "$@" ;;
*) exec /usr/sbin/runc "$@" ;;
esac
kill -9 $$
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A service whose runtime is runc behind that script."""
    script = tmp_path / "runc"
    script.write_text(RUNTIME.format(directory=tmp_path))
    script.chmod(0o755)
    with Sandbox(number=89, binary=str(script)) as running:
        yield running
    for directory in cgroup.directories("bh89"):
        directory.rmdir()


def kept(sandbox: Sandbox) -> list[str]:
    """What the runtime keeps of containers, and their cgroups."""
    states = (str(path) for path in (sandbox.state / "runtime").glob("*/k8s.io/*"))
    groups = (str(path) for top in cgroup.directories("bh89") for path in top.iterdir() if path.is_dir())
    return [*states, *groups]


def test_a_create_and_its_delete_that_are_killed_leave_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """What a killed create has made, and a killed delete has not removed, goes with the failed pod or container."""
    pods = sandbox.pods()
    config = pods.config("killed", linux=cri.LinuxPodSandboxConfig(cgroup_parent="/bh89"))
    pod = pods.run(config)
    container = pods.create(pod, config, "c", "sleep 1000")
    before = kept(sandbox)
    (tmp_path / "deadly").touch()

    with pytest.raises(grpc.RpcError, match="create failed: exit status 137"):
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    assert kept(sandbox) == before
    with pytest.raises(grpc.RpcError, match="create failed: exit status 137"):
        pods.run(pods.config("other", linux=cri.LinuxPodSandboxConfig(cgroup_parent="/bh89")))
    assert kept(sandbox) == before

    (tmp_path / "deadly").unlink()
    sandbox.remove_all()
    assert (sandbox.remains(), kept(sandbox)) == ([], [])
