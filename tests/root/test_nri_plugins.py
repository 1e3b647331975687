"""The protocol with real plugins: programs built with the stub of the Go module, connected or started by us."""

import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from bulkhead.config.model import NriValidator
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from conformance.build import build
from support.nri import Bench, bench, container, eventually, pod

pytestmark = pytest.mark.root

#: Everything that a plugin may adjust.
EVERYTHING = {
    "annotations": {"k": "v", "-old": ""},
    "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["ro"]}, {"destination": "-/gone"}],
    "env": [{"key": "NEW", "value": "1"}, {"key": "-A"}],
    "args": ["/bin/other"],
    "hooks": {stage: [{"path": f"/{stage}", "timeout": {"value": "3"}}] for stage in ("prestart", "poststop")},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": "5", "soft": "4"}],
    "CDI_devices": [{"name": "v.com/c=d"}],
    "linux": {
        "devices": [{"path": "/dev/x", "type": "c", "major": "1", "minor": "3", "file_mode": {"value": 438}}],
        "resources": {
            "memory": {"limit": {"value": "1000000"}, "swap": {}},
            "cpu": {"shares": {"value": "5"}, "cpus": "0"},
            "hugepage_limits": [{"page_size": "2MB", "limit": "0"}],
            "unified": {"memory.high": "1"},
            "pids": {"limit": "7"},
        },
        "cgroups_path": "/x",
        "oom_score_adj": {"value": "5"},
        "io_priority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "seccomp_policy": {"default_action": "SCMP_ACT_ALLOW"},
        "namespaces": [{"type": "network", "path": "/n"}],
        "sysctl": {"net.x": "1"},
        "net_devices": {"eth7": {"name": "in"}},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        "rdt": {"clos_id": {"value": "c"}},
        "memory_policy": {"mode": "MPOL_BIND", "nodes": "0"},
    },
}


@pytest.fixture(scope="module")
def program() -> Path:
    """The plugin."""
    return build("nriplugin")["nriplugin"]


@pytest.fixture
def stage(program: Path) -> Iterator[Bench]:
    """Hooks that plugins can connect to."""
    with bench(program) as made:
        yield made


def create(wish: object) -> str:
    return "CreateContainer=" + json.dumps({"adjust": wish})


def test_a_plugin_registers_and_hears_everything(stage: Bench) -> None:
    """From registration over the state of things to the last event: each once, in order, with what it is about."""
    stage.node.pods, stage.node.containers = [pod("old")], [container("there")]
    plugin = stage.connect("10-log")
    hooks = stage.hooks
    limits = nri.LinuxResources()
    limits.cpu.shares.value = 9
    hooks.run_pod_sandbox(pod())
    hooks.update_pod_sandbox(pod(), nri.LinuxResources(), limits)
    hooks.post_update_pod_sandbox(pod())
    hooks.create_container(pod(), container())
    hooks.post_create_container(pod(), container())
    hooks.start_container(pod(), container())
    hooks.post_start_container(pod(), container())
    hooks.update_container(pod(), container(), limits)
    hooks.post_update_container(pod(), container())
    hooks.stop_container(pod(), container())
    hooks.remove_container(pod(), container())
    hooks.stop_pod_sandbox(pod())
    hooks.remove_pod_sandbox(pod())
    hooks.stop()
    plugin.heard("Shutdown")

    told = {line["event"]: line for line in plugin.lines}
    assert [line["event"] for line in plugin.lines if line["event"] != "Ended"] == [
        *("Configure", "Synchronize", "RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox"),
        *("CreateContainer", "ValidateContainerAdjustment", "PostCreateContainer", "StartContainer"),
        *("PostStartContainer", "UpdateContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer"),
        *("StopPodSandbox", "RemovePodSandbox", "Shutdown"),
    ]
    assert (told["Configure"]["runtime"], told["Configure"]["version"]) == ("bulkhead", "1.2.3")
    assert (told["Configure"]["registration_timeout"], told["Configure"]["request_timeout"]) == ("30s", "20s")
    assert told["Configure"]["nri"] == "v0.12.5"
    assert (told["Synchronize"]["pods"], told["Synchronize"]["containers"]) == (["old"], ["there"])
    assert told["CreateContainer"]["container"]["env"] == ["A=1", "B=2"]
    assert told["UpdatePodSandbox"]["resources"] == {"cpu": {"shares": {"value": "9"}}}
    assert told["UpdateContainer"]["resources"] == {"cpu": {"shares": {"value": "9"}}}


def test_everything_can_be_adjusted(stage: Bench) -> None:
    """What a plugin wants comes out as it said it, removals included."""
    stage.connect("10-a", "-answer", create(EVERYTHING))

    answer = stage.hooks.create_container(pod(), container())

    expected = nri.ContainerAdjustment()
    json_format.ParseDict(EVERYTHING, expected)
    # Removals stand behind what replaces things.
    expected.env.sort(key=lambda pair: pair.key, reverse=True)
    assert answer.adjust == expected


def test_the_index_decides_who_is_first(stage: Bench) -> None:
    """Plugins are asked by index, whatever the order they came in; the later sees the earlier's work."""
    late = stage.connect("90-late")
    stage.connect("05-early", "-answer", create({"env": [{"key": "EARLY", "value": "1"}]}))

    stage.hooks.create_container(pod(), container())

    assert stage.names() == ["05-early", "90-late"]
    assert late.heard("CreateContainer")["container"]["env"] == ["A=1", "B=2", "EARLY=1"]


def test_two_plugins_in_conflict_fail_the_container(stage: Bench) -> None:
    """Both names and the field are in the error, and both plugins stay."""
    stage.connect("10-a", "-answer", create({"linux": {"resources": {"cpu": {"cpus": "0"}}}}))
    stage.connect("20-b", "-answer", create({"linux": {"resources": {"cpu": {"cpus": "1"}}}}))

    with pytest.raises(FailedPrecondition, match='"20-b" and "10-a" both tried to set CPUSetCPUs'):
        stage.hooks.create_container(pod(), container())
    assert stage.names() == ["10-a", "20-b"]


def test_a_slow_plugin_is_dropped_and_comes_back(program: Path) -> None:
    """The operation goes on after the request's time; the plugin that connects again is synchronized again."""
    with bench(program, plugin_request_timeout=1.0) as stage:
        plugin = stage.connect("10-slow", "-slow", "RunPodSandbox=60s", "-reconnect")
        began = time.monotonic()
        stage.hooks.run_pod_sandbox(pod())

        assert 0.9 < time.monotonic() - began < 30
        plugin.heard("Synchronize", 2)


def test_a_required_plugin_fails_closed(program: Path) -> None:
    """Missing, too late, or dead in the middle: nothing is made without it, and all is well once it is there."""
    rules = NriValidator(enable=True, required_plugins=("guard",))
    with bench(program, default_validator=rules, plugin_request_timeout=2.0) as stage:
        with pytest.raises(FailedPrecondition, match='RunPodSandbox: required NRI plugin "guard" is not connected'):
            stage.hooks.run_pod_sandbox(pod())
        stage.connect("10-guard", "-slow", "CreateContainer=30s", "-fail", "StartContainer=exit")
        stage.hooks.run_pod_sandbox(pod())
        with pytest.raises(DeadlineExceeded, match="10-guard failed CreateContainer: no answer within 2 s"):
            stage.hooks.create_container(pod(), container())
        with pytest.raises(FailedPrecondition, match="not connected"):
            stage.hooks.start_container(pod(), container())
        stage.connect("20-guard", "-fail", "StartContainer=exit")
        with pytest.raises(BulkheadError, match="20-guard failed StartContainer"):
            stage.hooks.start_container(pod(), container())
        stage.connect("30-guard")
        stage.hooks.create_container(pod(), container())


def test_the_plugins_own_policy_counts(program: Path, tmp_path: Path) -> None:
    """fail_request and keep_connected, as the plugin's stub announces them."""
    with bench(program, plugin_request_timeout=2.0) as stage:
        go = tmp_path / "go"
        stage.connect("10-a", "-hold", f"StartContainer={go}", "-policy", "fail_request,keep_connected")

        with pytest.raises(DeadlineExceeded, match="10-a failed StartContainer"):
            stage.hooks.start_container(pod(), container())
        go.touch()
        stage.hooks.create_container(pod(), container())
        assert stage.names() == ["10-a"]


def test_a_plugins_no_fails_the_operation(stage: Bench) -> None:
    """An error from the handler, or from a validator, is the operation's."""
    stage.connect("10-a", "-fail", "RunPodSandbox=not in my pod")
    stage.connect("20-v", "-reject", "not in my house", "-events", "ValidateContainerAdjustment")

    with pytest.raises(BulkheadError, match="10-a failed RunPodSandbox: not in my pod"):
        stage.hooks.run_pod_sandbox(pod())
    with pytest.raises(BulkheadError, match=r"20-v .*not in my house"):
        stage.hooks.create_container(pod(), container())


def test_unsolicited_updates_are_made(stage: Bench) -> None:
    """A plugin may change containers on its own, and is told what failed."""
    stage.node.stubborn = {"c2"}
    updates = {"update": [{"container_id": "c1"}, {"container_id": "c2"}]}
    plugin = stage.connect("10-a", "-unsolicited", json.dumps(updates))

    answer = plugin.heard("UpdateContainers")

    assert answer["response"] == {"failed": [{"container_id": "c2"}]}
    assert answer["error"] == "<nil>"
    assert [one.container_id for one in stage.node.updates] == ["c1", "c2"]


def test_a_large_node_is_synchronized_in_parts(stage: Bench) -> None:
    """A state of 12 MB, beyond what ttrpc carries in one message, arrives whole."""
    large = container()
    large.annotations["x"] = "y" * 60_000
    for number in range(200):
        copy = nri.Container()
        copy.CopyFrom(large)
        copy.id = f"c{number}"
        stage.node.containers.append(copy)
    plugin = stage.connect("10-a")

    assert plugin.heard("Synchronize")["containers"] == [f"c{number}" for number in range(200)]


def test_installed_plugins_are_started_and_ended(program: Path) -> None:
    """They get their settings, the one descriptor and three variables; they end with us, and are dropped when dead."""
    with bench(program, start=False, disable_connections=True) as stage:
        plugin = stage.install("10-here", settings="key = 1\n")
        broken = stage.install("20-broken", "-fail", "Configure=no")
        stage.hooks.start()

        assert stage.names() == ["10-here"]
        assert plugin.heard("Configure")["config"] == "key = 1\n"
        assert "Synchronize" not in broken.events()
        process = _process(stage.directory / "plugins" / "10-here")
        assert process is not None
        eventually(lambda: _process(stage.directory / "plugins" / "20-broken") is None)
        variables = dict(part.split("=", 1) for part in _read(process, "environ").split("\0") if part)
        assert set(variables) == {"NRI_PLUGIN_NAME", "NRI_PLUGIN_IDX", "NRI_PLUGIN_SOCKET"}
        descriptors = [os.readlink(f"/proc/{process}/fd/{name}") for name in os.listdir(f"/proc/{process}/fd")]
        assert len([one for one in descriptors if one.startswith("socket:")]) == 1
        assert not [one for one in descriptors if stage.directory.name in one and not one.endswith(".log")]
        assert not Path(stage.config.socket_path).exists()

        os.kill(process, signal.SIGKILL)
        eventually(lambda: stage.names() == [])
        eventually(lambda: not Path(f"/proc/{process}").exists())
        stage.hooks.start()
        again = _process(stage.directory / "plugins" / "10-here")
        stage.hooks.stop()
        eventually(lambda: again is not None and not Path(f"/proc/{again}").exists())
        assert "Shutdown" in plugin.events()


def test_a_plugin_that_never_registers_holds_nobody_up(program: Path) -> None:
    """Beside one that is silent and one that sends junk, others register and are asked."""
    with (
        bench(program, plugin_registration_timeout=3.0) as stage,
        socket.socket(socket.AF_UNIX) as silent,
        socket.socket(socket.AF_UNIX) as junk,
    ):
        for one in (silent, junk):
            one.connect(stage.config.socket_path)
        junk.sendall(struct.pack(">II", 2, 0xFFFFFFFF) + b"x" * 1000)
        stage.connect("10-a")
        stage.hooks.run_pod_sandbox(pod())
        silent.settimeout(60)
        assert silent.recv(1) == b""
        assert stage.names() == ["10-a"]


def test_a_death_in_the_middle_of_much_traffic(stage: Bench) -> None:
    """Operations from many threads succeed while a plugin is killed again and again, and no thread is left."""
    before = threading.active_count()
    failures: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                stage.hooks.create_container(pod(), container())
                stage.hooks.stop_container(pod(), container())
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for round_number in range(5):
        victim = stage.connect(f"1{round_number}-victim", "-events", "CreateContainer,StopContainer")
        time.sleep(0.1)
        assert victim.process is not None
        victim.process.kill()
    done.set()
    for thread in threads:
        thread.join(30)

    assert failures == []
    eventually(lambda: stage.names() == [])
    eventually(lambda: threading.active_count() <= before)


def _process(program: Path) -> int | None:
    """The process of an installed plugin, whose first argument is its program."""
    for entry in Path("/proc").glob("[0-9]*"):
        if re.match(re.escape(str(program)) + "\0", _read(int(entry.name), "cmdline")):
            return int(entry.name)
    return None


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text()
    except OSError:
        return ""
