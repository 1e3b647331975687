"""NRI 0.1: real exec plugins, built with the skeleton of that release, and ill-mannered ones of a line of shell."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from sandbox_svc import cgroup
from support.nri import eventually
from support.pods import Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root


class Plugins:
    """The files that name plugins, and what the plugins noted."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.directory = sandbox.directory / "nri"
        for name in ("resource.d", "bin"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "log"
        for name in ("first", "second"):
            shutil.copy(build("nriexec")["nriexec"], self.directory / "bin" / name)

    def configure(self, *plugins: dict[str, Any], name: str = "conf.json") -> None:
        """Name plugins in a file; each is given its log."""
        for plugin in plugins:
            plugin["conf"] = {"log": str(self.log), **plugin.get("conf", {})}
        (self.directory / name).write_text(json.dumps({"version": "0.1", "plugins": plugins}))

    def script(self, name: str, text: str) -> None:
        """Put a plugin of shell in place and name it."""
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        self.configure({"type": name})

    def heard(self, count: int = 0) -> list[dict[str, Any]]:
        """Return the requests so far, once there are that many."""
        deadline = time.monotonic() + 60
        while True:
            # What stands behind the last line feed is still being written.
            lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
            if len(lines) >= count or time.monotonic() > deadline:
                return [json.loads(line) for line in lines]
            time.sleep(0.02)

    def clear(self) -> None:
        """Name no plugin any more, and forget what was heard."""
        for path in (self.directory / "conf.json", *(self.directory / "resource.d").iterdir(), self.log):
            path.unlink(missing_ok=True)


#: Takes too long over a creation, and not over the end that it is then told of.
SLEEPS = """case "$(cat)" in *'"state": "create"'*|*'"state":"create"'*) sleep 60;; esac; echo '{}'"""
#: For what the runtime has a part in; all else is tried with one of them.
BOTH = pytest.mark.parametrize("sandbox", ["runc", "crun"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One service for the module and runtime."""
    with Sandbox(default=getattr(request, "param", "crun"), number=94) as running:
        yield running
        running.remove_all()
        assert running.remains() == []
    for name in ("bh94", "bh94-moved"):
        for directory in cgroup.directories(name):
            directory.rmdir()


@pytest.fixture
def plugins(sandbox: Sandbox) -> Iterator[Plugins]:
    """The plugins' directories; nothing is configured after the test."""
    made = Plugins(sandbox)
    yield made
    sandbox.remove_all()
    made.clear()


@pytest.fixture
def pods(sandbox: Sandbox, plugins: Plugins) -> Pods:
    """A maker of pods, which are gone after the test."""
    return sandbox.pods()


def summary(lines: list[dict[str, Any]], names: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(line["plugin"], line["request"]["state"], names[line["request"]["id"]]) for line in lines]


@BOTH
def test_plugins_hear_of_a_pod_and_its_container(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """Both files count, in order; create comes before the process runs, update after, delete at the end."""
    plugins.configure({"type": "first", "conf": {"metadata": {"cpus": "0-1"}}})
    plugins.configure({"type": "second"}, name="resource.d/10-second.conf")
    config = pods.config("exec", labels={"app": "web"}, linux=cri.LinuxPodSandboxConfig(cgroup_parent="/bh94"))
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    lines = plugins.heard(4)
    names = {pod: "pod", container: "container"}
    creations = [(who, "create", what) for what in ("pod", "container") for who in ("first", "second")]
    assert summary(lines, names) == creations
    request = lines[3]["request"]
    state = sandbox.stub().ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True), timeout=30)
    pid = json.loads(state.info["info"])["pid"]
    assert (request["pid"], request["sandboxID"], request["labels"]) == (pid, pod, {"app": "web"})
    assert request["version"] == "0.1"
    spec = request["spec"]
    assert spec["cgroupsPath"] == f"/bh94/{container}"
    assert spec["annotations"]["io.kubernetes.cri.container-name"] == "app"
    assert spec["namespaces"]["mount"] == f"/proc/{pid}/ns/mnt"
    assert spec["namespaces"]["net"] == spec["namespaces"]["network"]
    assert request["results"] == [{"plugin": "first", "version": "0.1", "error": "", "metadata": {"cpus": "0-1"}}]
    sandbox.stub().UpdateContainerResources(
        cri.UpdateContainerResourcesRequest(container_id=container, linux=cri.LinuxContainerResources(cpu_shares=512)),
        timeout=60,
    )
    lines = plugins.heard(6)
    assert summary(lines[4:], names) == [("first", "update", "container"), ("second", "update", "container")]
    assert lines[4]["request"]["spec"]["resources"]["cpu"]["shares"] == 512
    pods.stop(container)
    lines = plugins.heard(8)
    assert summary(lines[6:], names) == [("first", "delete", "container"), ("second", "delete", "container")]
    assert lines[6]["request"]["pid"] == -1
    pods.remove(pod)
    assert summary(plugins.heard(10)[8:], names) == [("first", "delete", "pod"), ("second", "delete", "pod")]


def test_create_comes_before_the_process_runs(pods: Pods, plugins: Plugins) -> None:
    """What a plugin does while it is asked is there when the container's first instruction runs."""
    config = pods.config("before")
    pod = pods.run(config)
    place = plugins.directory / "marks"
    place.mkdir()
    plugins.script("marker", f"cat > /dev/null; sleep 0.5; echo set > {place}/mark; echo '{{}}'")
    mounts = [cri.Mount(container_path="/marks", host_path=str(place))]
    container = pods.start(pod, config, "app", "cat /marks/mark", mounts=mounts)
    assert pods.wait_exited(container).exit_code == 0


@BOTH
def test_a_plugin_moves_a_container(pods: Pods, plugins: Plugins) -> None:
    """The README's answer: the process, its record and later plugins have the new group; it is gone after the end."""
    plugins.configure({"type": "first", "conf": {"cgroupsPath": "/bh94-moved"}}, {"type": "second"})
    linux = cri.LinuxPodSandboxConfig(cgroup_parent="/bh94")
    config = pods.config("move", linux=linux)
    pod = pods.run(config)
    limits = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(cpu_shares=300))
    container = pods.start(pod, config, "app", "echo ready; sleep 1000", linux=limits)
    moved = f"/bh94-moved/{container}"
    assert [line["request"]["spec"]["cgroupsPath"] for line in plugins.heard(4)[2:]] == [f"/bh94/{container}", moved]
    (pid,) = cgroup.processes(moved)
    assert plugins.heard()[3]["request"]["pid"] == pid
    assert cgroup.directories(f"/bh94/{container}") == []
    if cgroup.mode() != "v2":
        assert Path(f"/sys/fs/cgroup/cpu{moved}/cpu.shares").read_text() == "300\n"
    assert pods.exec(container, "echo", "alive").stdout == b"alive\n"
    eventually(lambda: "ready" in (pods.logs / "app.log").read_text())
    assert (pods.logs / "app.log").read_text().count("ready") == 1
    usage = pods.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container), timeout=30)
    assert usage.stats.memory.usage_bytes.value > 0
    pods.remove(pod)
    assert cgroup.directories(moved) == []


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        (
            "cat > /dev/null; echo no more cpus >&2; exit 3",
            "FAILED_PRECONDITION",
            "exit status 3, stderr: no more cpus",
        ),
        ('cat > /dev/null; echo \'{"error": "set is full"}\'', "FAILED_PRECONDITION", "set is full"),
        ("cat > /dev/null; echo '['", "FAILED_PRECONDITION", "its result is no JSON"),
        ("cat > /dev/null; exec yes", "FAILED_PRECONDITION", "wrote more than 1048576 bytes"),
        (SLEEPS, "DEADLINE_EXCEEDED", "did not finish within 4 s and was killed"),
        ('cat > /dev/null; echo \'{"cgroupsPath": "/../x"}\'', "FAILED_PRECONDITION", "must not contain '..'"),
    ],
)
def test_a_plugin_that_fails_fails_the_start(
    sandbox: Sandbox, pods: Pods, plugins: Plugins, text: str, code: str, complaint: str
) -> None:
    """The error names the plugin and what it said; nothing runs, and the container says StartError."""
    config = pods.config("bad")
    pod = pods.run(config)
    container = pods.create(pod, config, "app", "sleep 1000")
    plugins.script("konfine", text)
    with pytest.raises(grpc.RpcError) as caught:
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    assert isinstance(caught.value, grpc.Call)
    details = caught.value.details() or ""
    assert caught.value.code().name == code
    assert details.startswith("NRI exec plugin konfine (create): ")
    assert complaint in details
    status = pods.status(container)
    assert (status.state, status.reason, status.exit_code) == (cri.CONTAINER_EXITED, "StartError", 128)
    assert complaint in status.message
    eventually(lambda: not subprocess.run(["pgrep", "-f", container], capture_output=True, timeout=30).stdout)


def test_a_later_plugin_refuses_and_the_earlier_hears_of_the_end(pods: Pods, plugins: Plugins) -> None:
    """What a plugin set up for a container that never starts is its own to take back: delete tells it to."""
    config = pods.config("refuse")
    pod = pods.run(config)
    plugins.configure({"type": "first"}, {"type": "second", "conf": {"error": "not here", "errorState": "create"}})
    with pytest.raises(grpc.RpcError, match=r"NRI exec plugin second \(create\): not here \(stderr: about to refuse\)"):
        pods.start(pod, config, "app", "sleep 1000")
    states = [(line["plugin"], line["request"]["state"]) for line in plugins.heard(4)]
    assert states == [("first", "create"), ("second", "create"), ("first", "delete"), ("second", "delete")]


def test_a_pod_that_a_plugin_refuses_leaves_nothing(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """Network, shim and files of the pod are taken back."""
    plugins.configure({"type": "first", "conf": {"error": "no pods today", "errorState": "create"}})
    with pytest.raises(grpc.RpcError, match="no pods today"):
        pods.run(pods.config("refused"))
    assert sandbox.remains() == []
    assert sandbox.shims() == []


def test_a_file_that_is_no_configuration_fails_what_it_would_guard(pods: Pods, plugins: Plugins) -> None:
    """The error names the file; a plugin that nobody can find is named, too."""
    (plugins.directory / "conf.json").write_text('{"plugins": [{"type": "../sh"}]}')
    with pytest.raises(grpc.RpcError, match=r"conf.json: plugins\[0\].type is '../sh', expected the name of a binary"):
        pods.run(pods.config("broken"))
    plugins.configure({"type": "absent"})
    with pytest.raises(grpc.RpcError, match=r"NRI exec plugin absent \(create\): .*/nri/bin/absent: No such file"):
        pods.run(pods.config("absent"))


def test_delete_is_heard_after_a_crash(sandbox: Sandbox, pods: Pods, plugins: Plugins, tmp_path: Path) -> None:
    """A container that ends while nobody is there to tell plugins is told of later; one that runs is left alone."""
    plugins.configure({"type": "first"})
    config = pods.config("crash")
    pod = pods.run(config)
    stays = pods.start(pod, config, "stays", "sleep 1000")
    mounts = [cri.Mount(container_path="/marks", host_path=str(tmp_path))]
    ends = pods.start(pod, config, "ends", "until [ -e /marks/go ]; do sleep 0.05; done", mounts=mounts)
    sandbox.kill()
    (tmp_path / "go").touch()
    sandbox.wait_shim_knows_exit(ends)
    sandbox.start()
    found = [line["request"] for line in plugins.heard(4)[3:]]
    assert [(request["state"], request["id"]) for request in found] == [("delete", ends)]
    assert pods.status(stays).state == cri.CONTAINER_RUNNING
