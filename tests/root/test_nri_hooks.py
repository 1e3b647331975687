"""NRI through the RPCs: real Go plugins, real runtimes; what plugins hear, and what becomes of what they ask for."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import cgroup
from support.nri import Plugin, eventually
from support.nri_node import Plugins, limit, plugins_of, same_namespace, spec_of
from support.pods import Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

#: The node's cgroup that a plugin puts a container into, and the parent of pods here.
MOVED, PARENT = "/bh95-moved", "/bh95"
_VALIDATOR = "[plugins.'io.containerd.nri.v1.nri'.default_validator]\nenable = true\n"


#: For what the runtime has a part in; all else is tried with one of them.
BOTH = pytest.mark.parametrize("sandbox", ["runc", "crun"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One service for the module and runtime."""
    with Sandbox(default=getattr(request, "param", "crun"), number=95, more=_VALIDATOR) as running:
        yield running
        running.remove_all()
        assert running.remains() == []
    for name in (MOVED, PARENT):
        for directory in cgroup.directories(name):
            directory.rmdir()


@pytest.fixture
def plugins(sandbox: Sandbox) -> Iterator[Plugins]:
    """A starter of plugins, which are gone after the test, as the pods are."""
    with plugins_of(sandbox) as made:
        yield made
        sandbox.remove_all()


@pytest.fixture
def pods(sandbox: Sandbox, plugins: Plugins) -> Pods:
    """A maker of pods."""
    return sandbox.pods()


def parent() -> cri.LinuxPodSandboxConfig:
    return cri.LinuxPodSandboxConfig(cgroup_parent=PARENT)


def output(pods: Pods, container: str, script: str) -> str:
    answer = pods.exec(container, "sh", "-c", script)
    assert answer.exit_code == 0, answer
    return answer.stdout.decode().strip()


def update(pods: Pods, container: str, **fields: Any) -> None:
    request = cri.UpdateContainerResourcesRequest(container_id=container, linux=cri.LinuxContainerResources(**fields))
    pods.runtime.UpdateContainerResources(request, timeout=60)


def heard(plugin: Plugin, count: int) -> list[dict[str, Any]]:
    """Return the pod and container events so far, once there are that many."""
    eventually(lambda: len(plugin.lines) >= count + 2)
    return plugin.lines[2:]


@BOTH
def test_the_life_of_a_pod(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """Every event comes once, in containerd's order, with what was true at that moment."""
    plugin = plugins.connect("10-watch")
    config = pods.config("life", labels={"app": "web"}, annotations={"who": "pod"}, linux=parent())
    pod = pods.run(config)
    resources = cri.LinuxContainerResources(cpu_shares=300)
    pods.runtime.UpdatePodSandboxResources(
        cri.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=resources), timeout=30
    )
    status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True), timeout=30)
    assert json.loads(status.info["info"])["resources"] == {"linux": {"cpu_shares": 300}}
    container = pods.start(pod, config, "app", "sleep 1000", annotations={"who": "container"}, labels={"a": "b"})
    update(pods, container, cpu_shares=512)
    pods.stop(container)
    pods.stop(container)
    pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
    pods.remove(pod)
    lines = heard(plugin, 14)
    assert [line["event"] for line in lines] == [
        "RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox",
        "CreateContainer", "ValidateContainerAdjustment", "PostCreateContainer", "StartContainer", "PostStartContainer",
        "UpdateContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer",
        "StopPodSandbox", "RemovePodSandbox",
    ]  # fmt: skip
    by_event = {line["event"]: line for line in lines}
    told = by_event["RunPodSandbox"]["pod"]
    assert (told["id"], told["name"], told["namespace"], told["uid"]) == (pod, "life", "default", "uid-life")
    assert told["labels"] == {"app": "web"}
    assert told["annotations"]["who"] == "pod"
    assert told["ips"][0].startswith("10.95.")
    assert told["pid"] > 1
    assert told["linux"]["cgroup_parent"] == PARENT
    assert told["linux"]["cgroups_path"] == f"{PARENT}/{pod}"
    assert {ns["type"] for ns in told["linux"]["namespaces"]} >= {"network", "ipc", "uts"}
    assert by_event["UpdatePodSandbox"]["resources"]["cpu"]["shares"] == {"value": "300"}
    assert by_event["PostUpdatePodSandbox"]["pod"]["linux"]["pod_resources"]["cpu"]["shares"] == {"value": "300"}
    states = {
        name: line["container"].get("state", "CONTAINER_UNKNOWN")
        for name, line in by_event.items()
        if "container" in line
    }
    assert states == {
        "CreateContainer": "CONTAINER_UNKNOWN",
        "PostCreateContainer": "CONTAINER_CREATED",
        "StartContainer": "CONTAINER_CREATED",
        "PostStartContainer": "CONTAINER_RUNNING",
        "UpdateContainer": "CONTAINER_RUNNING",
        "PostUpdateContainer": "CONTAINER_RUNNING",
        "StopContainer": "CONTAINER_STOPPED",
        "RemoveContainer": "CONTAINER_STOPPED",
    }
    made = by_event["CreateContainer"]["container"]
    assert (made["id"], made["pod_sandbox_id"], made["name"]) == (container, pod, "app")
    assert made["args"] == ["sh", "-c", "sleep 1000"]
    assert made["labels"] == {"a": "b"}
    assert made["annotations"]["who"] == "container"
    assert "run.oci.seccomp_bpf_data" not in made["annotations"]
    assert made["image"]["config_digest"].startswith("sha256:")
    assert "/proc" in {mount["destination"] for mount in made["mounts"]}
    assert by_event["StartContainer"]["container"]["pid"] == by_event["PostStartContainer"]["container"]["pid"] > 1
    assert by_event["UpdateContainer"]["resources"]["cpu"]["shares"] == {"value": "512"}
    assert by_event["PostUpdateContainer"]["container"]["linux"]["resources"]["cpu"]["shares"] == {"value": "512"}
    stopped = by_event["StopContainer"]["container"]
    assert (stopped["exit_code"], int(stopped["finished_at"]) > int(stopped["started_at"])) == (137, True)


def test_a_container_that_ends_by_itself(pods: Pods, plugins: Plugins) -> None:
    """Its stop is told once, without anybody's StopContainer; one that never ran is stopped when it is removed."""
    plugin = plugins.connect("10-watch", "-events", "StopContainer,RemoveContainer,StopPodSandbox,RemovePodSandbox")
    config = pods.config("ends")
    pod = pods.run(config)
    ends = pods.start(pod, config, "ends", "exit 3")
    never = pods.create(pod, config, "never", "true")
    assert plugin.heard("StopContainer")["container"]["exit_code"] == 3
    pods.stop(ends)
    pods.remove(pod)
    plugin.heard("RemovePodSandbox")
    found = [(line["event"], line.get("container", {}).get("id")) for line in heard(plugin, 6)]
    assert found[0] == ("StopContainer", ends)
    assert found[1] == ("StopPodSandbox", None)
    assert found[-1] == ("RemovePodSandbox", None)
    removals = [item for item in found[2:-1] if item[1] == never]
    assert removals == [("StopContainer", never), ("RemoveContainer", never)]
    assert [item for item in found if item[1] == ends] == [("StopContainer", ends), ("RemoveContainer", ends)]


def test_nothing_shows_while_plugins_are_asked(pods: Pods, plugins: Plugins, tmp_path: Path) -> None:
    """A pod or container that a plugin may still refuse is in no list; a pod's containers end before it is stopped."""
    held = {event: tmp_path / event for event in ("RunPodSandbox", "CreateContainer", "StopPodSandbox")}
    plugin = plugins.connect("10-slow", *[part for pair in held.items() for part in ("-hold", "{}={}".format(*pair))])
    config = pods.config("slow")
    seen: list[tuple[str, int]] = []

    def beside(event: str, work: Callable[[], Any], look: Callable[[], int]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            plugin.heard(event)
            try:
                assert not done.done()
                seen.append((event, look()))
            finally:
                held[event].touch()
            return done.result(60)

    def listed_pods() -> int:
        return len(pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items)

    def listed(state: "cri.ContainerState") -> int:
        found = pods.runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers
        return sum(container.state == state for container in found)

    pod = beside("RunPodSandbox", lambda: pods.run(config), listed_pods)
    beside(
        "CreateContainer",
        lambda: pods.start(pod, config, "app", "sleep 1000"),
        lambda: listed(cri.CONTAINER_CREATED),
    )
    stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
    beside(
        "StopPodSandbox", lambda: pods.runtime.StopPodSandbox(stop, timeout=60), lambda: listed(cri.CONTAINER_EXITED)
    )
    assert seen == [("RunPodSandbox", 0), ("CreateContainer", 0), ("StopPodSandbox", 1)]


def test_nothing_is_lost_while_a_plugin_is_synchronized(pods: Pods, plugins: Plugins) -> None:
    """What is made meanwhile waits, and the plugin hears of it like of everything after."""
    config = pods.config("race")
    pod = pods.run(config)
    before = pods.start(pod, config, "before", "sleep 1000")
    with ThreadPoolExecutor(4) as pool:
        plugin = plugins.connect("10-late", "-slow", "Synchronize=1s")
        made = [pool.submit(pods.start, pod, config, f"during{n}", "sleep 1000") for n in range(3)]
        during = [one.result(60) for one in made]
    assert plugin.heard("Synchronize")["containers"] == [before]
    plugin.heard("CreateContainer", 3)
    asked = [line["container"]["id"] for line in plugin.lines if line["event"] == "CreateContainer"]
    assert sorted(asked) == sorted(during)


@BOTH
@pytest.mark.parametrize(
    ("field", "wish"),
    [
        ("io_priority", {"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5}}),
        ("scheduler", {"scheduler": {"policy": "SCHED_BATCH", "nice": 3}}),
        ("memory_policy", {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}),
    ],
)
def test_what_the_runtime_would_leave_out(pods: Pods, plugins: Plugins, field: str, wish: dict[str, Any]) -> None:
    """Debian 12's runtimes know neither, and say nothing: the container is refused, naming what it would lack."""
    plugins.adjust("10-policy", {"linux": wish})
    config = pods.config(f"lacks-{field.replace('_', '-')}")
    pod = pods.run(config)
    with pytest.raises(grpc.RpcError) as caught:
        pods.create(pod, config, "app", "sleep 1")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert f"linux.{field}, which the OCI runtime does not know of" in str(caught.value.details())
    pods.remove(pod)


@BOTH
def test_every_adjustment_arrives(sandbox: Sandbox, pods: Pods, plugins: Plugins, tmp_path: Path) -> None:
    """In the container's config.json and, as far as these runtimes know it, in the running container."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("from the plugin")
    os.chmod(tmp_path, 0o755)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat >> {tmp_path}/hooks; echo >> {tmp_path}/hooks"]}
    plugin = plugins.adjust("10-all", {
        "annotations": {"nri/added": "yes", "-io.kubernetes.cri.image-name": ""},
        "env": [{"key": "ADDED", "value": "new"}, {"key": "GIVEN", "value": "changed"}, {"key": "-GONE"}],
        "args": ["sh", "-c", "echo adjusted $(cat /proc/self/oom_score_adj); sleep 1000"],
        "mounts": [
            {"destination": "/plugin", "type": "bind", "source": f"{tmp_path}/shared", "options": ["rbind", "ro"]},
            {"destination": "-/dev/mqueue"},
        ],
        "hooks": {"createRuntime": [hook], "poststop": [hook]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": "512", "hard": "600"}],
        "linux": {
            "devices": [{"path": "/dev/nri-null", "type": "c", "major": "1", "minor": "3", "fileMode": {"value": 438}}],
            "cgroupsPath": f"{MOVED}/it",
            "oomScoreAdj": {"value": "777"},
            "sysctl": {"kernel.shm_rmid_forced": "1"},
            "namespaces": [{"type": "ipc"}, {"type": "-uts"}],
            "resources": {
                "cpu": {"shares": {"value": "333"}, "quota": {"value": "50000"}, "period": {"value": "100000"}},
                "memory": {"limit": {"value": "67108864"}},
                "pids": {"limit": "99"},
            },
            "seccompPolicy": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": {"value": 95}}],
            },
        },
    })  # fmt: skip
    config = pods.config("adjust", linux=parent())
    pod = pods.run(config)
    envs = [cri.KeyValue(key="GIVEN", value=b"old"), cri.KeyValue(key="GONE", value=b"x")]
    container = pods.start(pod, config, "app", "sleep 1", envs=envs)
    spec = spec_of(sandbox, container)
    process, linux = spec["process"], spec["linux"]
    assert spec["annotations"]["nri/added"] == "yes"
    assert "io.kubernetes.cri.image-name" not in spec["annotations"]
    assert process["args"][2].startswith("echo adjusted")
    assert {"ADDED=new", "GIVEN=changed"} <= set(process["env"])
    assert not any(entry.startswith("GONE=") for entry in process["env"])
    assert process["oomScoreAdj"] == 777
    assert {"type": "RLIMIT_NOFILE", "hard": 600, "soft": 512} in process["rlimits"]
    assert linux["cgroupsPath"] == f"{MOVED}/it"
    assert linux["sysctl"]["kernel.shm_rmid_forced"] == "1"
    assert linux["resources"]["memory"]["limit"] == 67108864
    assert linux["resources"]["pids"] == {"limit": 99}
    assert linux["seccomp"]["syscalls"][0]["errnoRet"] == 95
    assert "uts" not in {entry["type"] for entry in linux["namespaces"]}
    assert [mount["destination"] for mount in spec["mounts"] if mount["destination"] in ("/plugin", "/dev/mqueue")] == [
        "/plugin"
    ]
    # The filter that crun is handed ready-made is that of the adjusted profile.
    assert ("run.oci.seccomp_bpf_data" in spec["annotations"]) == (sandbox.default == "crun")
    assert output(pods, container, "echo $ADDED $GIVEN $GONE.") == "new changed ."
    assert output(pods, container, "cat /plugin/file; ! touch /plugin/x 2>/dev/null") == "from the plugin"
    assert output(pods, container, "! grep -q /dev/mqueue /proc/self/mounts && ulimit -Hn") == "600"
    assert output(pods, container, "ls -l /dev/nri-null | cut -c1-10; echo x > /dev/nri-null") == "crw-rw-rw-"
    assert output(pods, container, "cat /proc/sys/kernel/shm_rmid_forced") == "1"
    assert same_namespace("uts", output(pods, container, "readlink /proc/self/ns/uts"))
    assert "not supported" in pods.exec(container, "mkdir", "/tmp/x").stderr.decode()
    assert limit(sandbox, container, "pids", "pids.max", "pids.max") == "99"
    assert limit(sandbox, container, "memory", "memory.limit_in_bytes", "memory.max") == "67108864"
    if cgroup.mode() != "v2":
        assert limit(sandbox, container, "cpu", "cpu.shares", "") == "333"
        assert limit(sandbox, container, "cpu", "cpu.cfs_quota_us", "") == "50000"
    shown = pods.status(container).resources.linux
    assert (shown.cpu_shares, shown.cpu_quota, shown.memory_limit_in_bytes) == (333, 50000, 67108864)
    eventually(lambda: "adjusted 777" in (pods.logs / "app.log").read_text())
    assert plugin.heard("PostCreateContainer")["container"]["linux"]["cgroups_path"] == f"{MOVED}/it"
    pods.remove(pod)
    eventually(lambda: (tmp_path / "hooks").read_text().count(container) >= 2)
    assert cgroup.directories(f"{MOVED}/it") == []


def test_synchronize_tells_what_is_there(pods: Pods, plugins: Plugins) -> None:
    """Ready and stopped pods, created and running containers; those that ended are history."""
    config = pods.config("sync")
    pod = pods.run(config)
    created = pods.create(pod, config, "created", "true")
    running = pods.start(pod, config, "running", "sleep 1000")
    ended = pods.start(pod, config, "ended", "true")
    pods.wait_exited(ended)
    other = pods.run(pods.config("stopped"))
    pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=other), timeout=60)
    plugin = plugins.connect("10-late")
    told = plugin.heard("Synchronize")
    assert sorted(told["pods"]) == sorted([pod, other])
    assert told["states"] == {created: "CONTAINER_CREATED", running: "CONTAINER_RUNNING"}
    pods.stop(running)
    assert plugin.heard("StopContainer")["container"]["id"] == running


@BOTH
def test_updates_that_nobody_asked_for(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """They reach the cgroup of what runs, the bundle of what does not run yet, and the status; others are dropped."""
    config = pods.config("unsolicited", linux=parent())
    pod = pods.run(config)
    running = pods.start(pod, config, "running", "sleep 1000")
    created = pods.create(pod, config, "created", "sleep 1000")
    limits = {"resources": {"memory": {"limit": {"value": "33554432"}}}}
    updates = [{"container_id": ident, "linux": limits} for ident in (running, created, "f" * 64)]
    plugin = plugins.connect("10-busy", "-unsolicited", json.dumps({"update": updates}))
    answer = plugin.heard("UpdateContainers")
    assert (answer["response"], answer["error"]) == ({}, "<nil>")
    for container in (running, created):
        assert pods.status(container).resources.linux.memory_limit_in_bytes == 33554432
    assert limit(sandbox, running, "memory", "memory.limit_in_bytes", "memory.max") == "33554432"
    pods.runtime.StartContainer(cri.StartContainerRequest(container_id=created), timeout=60)
    assert limit(sandbox, created, "memory", "memory.limit_in_bytes", "memory.max") == "33554432"


@BOTH
def test_an_update_that_cannot_be_made_is_told_back(pods: Pods, plugins: Plugins) -> None:
    """A processor that the node does not have fails that one update, and leaves the container as it was."""
    config = pods.config("failing", linux=parent())
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    bad = {"container_id": container, "linux": {"resources": {"cpu": {"cpus": "4000"}}}}
    request = {"update": [bad, {**bad, "ignore_failure": True}]}
    plugin = plugins.connect("10-busy", "-unsolicited", json.dumps(request))
    failed = plugin.heard("UpdateContainers")["response"]["failed"]
    assert [update["container_id"] for update in failed] == [container]
    assert pods.status(container).resources.linux.cpuset_cpus == ""


@BOTH
def test_a_creation_updates_others(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """Room is made in another container before the new one exists; if that fails, there is no new one."""
    config = pods.config("others", linux=parent())
    pod = pods.run(config)
    other = pods.start(pod, config, "other", "sleep 1000")

    def answer(cpu: dict[str, Any]) -> str:
        return "CreateContainer=" + json.dumps(
            {"update": [{"container_id": other, "linux": {"resources": {"cpu": cpu}}}]}
        )

    plugin = plugins.connect("10-room", "-answer", answer({"shares": {"value": "444"}}))
    pods.create(pod, config, "one", "true")
    assert pods.status(other).resources.linux.cpu_shares == 444
    if cgroup.mode() != "v2":
        assert limit(sandbox, other, "cpu", "cpu.shares", "") == "444"
    plugins.disconnect(plugin)
    plugin = plugins.connect("10-room", "-answer", answer({"cpus": "4000"}))
    with pytest.raises(grpc.RpcError, match="NRI plugins want other limits"):
        pods.create(pod, config, "two", "true")
    assert [line["event"] for line in heard(plugin, 4)][-2:] == ["StopContainer", "RemoveContainer"]


@BOTH
def test_an_update_as_plugins_want_it(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """What a plugin says counts over the kubelet's, and what it leaves is the kubelet's."""
    config = pods.config("update", linux=parent())
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    wish = {"container_id": "self", "linux": {"resources": {"cpu": {"shares": {"value": "777"}}}}}
    plugins.connect("10-more", "-answer", "UpdateContainer=" + json.dumps({"update": [wish]}))
    update(pods, container, cpu_shares=512, memory_limit_in_bytes=1 << 26, oom_score_adj=5)
    shown = pods.status(container).resources.linux
    assert (shown.cpu_shares, shown.memory_limit_in_bytes, shown.oom_score_adj) == (777, 1 << 26, 5)
    assert limit(sandbox, container, "memory", "memory.limit_in_bytes", "memory.max") == str(1 << 26)
    if cgroup.mode() != "v2":
        assert limit(sandbox, container, "cpu", "cpu.shares", "") == "777"


def test_what_a_plugin_refuses_is_undone(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """The error names plugin and reason; those asked before hear of the end of what never was."""
    config = pods.config("refuse")
    pod = pods.run(config)
    events = "RunPodSandbox,StopPodSandbox,RemovePodSandbox,CreateContainer,StopContainer,RemoveContainer"
    watch = plugins.connect("10-watch", "-events", events)
    critic = plugins.connect("20-critic", "-fail", "CreateContainer=no such luck", "-fail", "RunPodSandbox=no pods")
    with pytest.raises(grpc.RpcError, match=r"20-critic.*no such luck"):
        pods.create(pod, config, "app", "true")
    with pytest.raises(grpc.RpcError, match=r"20-critic.*no pods"):
        pods.run(pods.config("other"))
    plugins.disconnect(critic)
    assert [line["event"] for line in heard(watch, 6)] == [
        "CreateContainer", "StopContainer", "RemoveContainer", "RunPodSandbox", "StopPodSandbox", "RemovePodSandbox",
    ]  # fmt: skip
    listed = pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items
    assert [item.id for item in listed] == [pod]
    assert len(list(pods.runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers)) == 0
    eventually(lambda: {Path(path).name for path in sandbox.remains() if "/bundles/" in path} == {pod})


def test_a_start_that_a_plugin_refuses(pods: Pods, plugins: Plugins) -> None:
    """Nothing runs, the status says why, and plugins hear of the stop."""
    config = pods.config("start")
    pod = pods.run(config)
    plugin = plugins.connect("10-critic", "-fail", "StartContainer=not now")
    container = pods.create(pod, config, "app", "sleep 1000")
    with pytest.raises(grpc.RpcError, match="not now"):
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    status = pods.status(container)
    assert (status.state, status.reason) == (cri.CONTAINER_EXITED, "StartError")
    assert "not now" in status.message
    assert plugin.heard("StopContainer")["container"]["id"] == container


@pytest.mark.parametrize(
    ("adjustment", "complaint"),
    [
        ({"linux": {"cgroupsPath": "/../../x"}}, "NRI adjustment.linux.cgroups_path: cgroup path"),
        ({"linux": {"namespaces": [{"type": "moon"}]}}, "NRI adjustment.linux.namespaces: type: 'moon'"),
        ({"mounts": [{"destination": "relative"}]}, "NRI adjustment.mounts: destination is 'relative'"),
        ({"CDIDevices": [{"name": "vendor.test/class=none"}]}, "NRI adjustment.CDI_devices: "),
        ({"linux": {"resources": {"blockioClass": {"value": "gold"}}}}, "block I/O"),
    ],
)
def test_an_adjustment_that_cannot_be_made(
    sandbox: Sandbox, pods: Pods, plugins: Plugins, adjustment: dict[str, Any], complaint: str
) -> None:
    """The creation fails with the field's name and leaves nothing."""
    config = pods.config("bad")
    pod = pods.run(config)
    plugins.adjust("10-bad", adjustment)
    with pytest.raises(grpc.RpcError) as caught:
        pods.create(pod, config, "app", "true")
    assert isinstance(caught.value, grpc.Call)
    assert complaint in (caught.value.details() or "")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    eventually(lambda: {Path(path).name for path in sandbox.remains() if "/bundles/" in path} == {pod})


def test_a_required_plugin_that_is_missing(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """Without it neither the pod that wants it nor a further container of that pod is made, and nothing is left."""
    config = pods.config("required", annotations={"required-plugins.noderesource.dev": '["10-guard"]'})
    absent = 'required NRI plugin "10-guard" is not connected'
    with pytest.raises(grpc.RpcError, match=f"RunPodSandbox: {absent}"):
        pods.run(config)
    eventually(lambda: sandbox.remains() == [])
    guard = plugins.connect("10-guard")
    pod = pods.run(config)
    first = pods.start(pod, config, "first", "sleep 1000")
    plugins.disconnect(guard)
    with pytest.raises(grpc.RpcError, match=f"CreateContainer: {absent}"):
        pods.create(pod, config, "second", "sleep 1000")
    eventually(lambda: {Path(path).name for path in sandbox.remains() if "/bundles/" in path} == {pod, first})
    assert pods.status(first).state == cri.CONTAINER_RUNNING


def test_after_a_crash(sandbox: Sandbox, pods: Pods, plugins: Plugins) -> None:
    """A plugin that comes back is told of what runs, and then of its end."""
    plugin = plugins.connect("10-back", "-reconnect")
    config = pods.config("crash")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    sandbox.restart()
    told = plugin.heard("Synchronize", 2)
    assert (told["pods"], told["states"]) == ([pod], {container: "CONTAINER_RUNNING"})
    pods.remove(pod)
    plugin.heard("RemovePodSandbox")
    after = [line["event"] for line in plugin.lines]
    after = after[len(after) - after[::-1].index("Synchronize") :]
    assert after == ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox"]
