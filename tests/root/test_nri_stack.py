"""Real NRI plugins beside a sandbox-svc that is killed: they come back, or go with it, and nothing slips through."""

import concurrent.futures
import contextlib
import os
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.nri import Plugin, connected, end, eventually, launch
from support.pods import TIMEOUT
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

REQUIRED = """[plugins.'io.containerd.nri.v1.nri'.default_validator]
enable = true
required_plugins = ["guard"]
"""


@pytest.fixture(scope="module")
def program() -> Path:
    """The plugin."""
    return build("nriplugin")["nriplugin"]


def plugin_of(sandbox: Sandbox, name: str, *arguments: str) -> contextlib.AbstractContextManager[Plugin]:
    """Run a plugin that connects again and again."""
    socket, log = sandbox.directory / "nri/run/nri.sock", sandbox.directory / f"{name}.log"
    return connected(name, socket, log, "-reconnect", *arguments)


def test_plugins_survive_the_death_of_the_service(program: Path) -> None:
    """After kill -9, one that connects is synchronized anew; one that was started goes, and is started again."""
    sandbox = Sandbox(number=98)
    plugins = sandbox.directory / "nri" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "20-own").write_bytes(program.read_bytes())
    (plugins / "20-own").chmod(0o755)
    (plugins / "20-own.args").write_text(f"-log\n{sandbox.directory}/20-own.log")
    own = Plugin("20-own", sandbox.directory / "20-own.log")
    with sandbox, plugin_of(sandbox, "10-log") as plugin:
        pods = sandbox.pods()
        config = pods.config("web")
        pod = pods.run(config)
        running = pods.start(pod, config, "app", "sleep 300")
        plugin.heard("PostStartContainer")
        first = _processes(plugins / "20-own")
        sandbox.kill()
        eventually(lambda: not _processes(plugins / "20-own"))
        sandbox.start()

        for one in (plugin, own):
            state = one.heard("Synchronize", 2)
            assert (state["pods"], state["states"]) == ([pod], {running: "CONTAINER_RUNNING"})
        assert len(first) == 1
        assert len(_processes(plugins / "20-own")) == 1
        pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
        for one in (plugin, own):
            assert one.heard("StopContainer")["container"]["id"] == running
            assert one.heard("StopPodSandbox")["pod"]["id"] == pod
    eventually(lambda: not _processes(plugins / "20-own"))


def test_a_late_plugin_misses_nothing() -> None:
    """Containers made before, while and after a plugin takes 2 s to be synchronized are each told of once."""
    with Sandbox(number=98) as sandbox, concurrent.futures.ThreadPoolExecutor() as threads:
        pods = sandbox.pods()
        config = pods.config("web")
        pod = pods.run(config)
        before = pods.start(pod, config, "before", "sleep 300")
        socket, log = sandbox.directory / "nri/run/nri.sock", sandbox.directory / "10-late.log"
        plugin = launch("10-late", socket, log, "-slow", "Synchronize=2s")
        state = plugin.heard("Synchronize")
        made = [threads.submit(pods.start, pod, config, f"during{number}", "sleep 300") for number in range(3)]
        during = [future.result(60) for future in made]
        after = pods.start(pod, config, "after", "sleep 300")
        try:
            plugin.heard("PostStartContainer", 4)
            told = [line["container"]["id"] for line in plugin.lines if line["event"] == "CreateContainer"]
            assert state["containers"] == [before]
            assert sorted(told) == sorted([*during, after])
        finally:
            end(plugin)


def test_without_a_required_plugin_nothing_is_made() -> None:
    """RunPodSandbox and CreateContainer are refused by name of the plugin while it is not there, or does not answer."""
    with Sandbox(number=98, more=REQUIRED, nri_timeout="2s") as sandbox:
        pods = sandbox.pods()
        config = pods.config("web")
        with pytest.raises(grpc.RpcError) as caught:
            pods.run(config)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert 'required NRI plugin "guard" is not connected' in str(caught.value.details())

        with plugin_of(sandbox, "10-guard", "-slow", "CreateContainer=30s") as guard:
            pod = pods.run(config)
            with pytest.raises(grpc.RpcError, match="10-guard failed CreateContainer: no answer within 2 s"):
                pods.create(pod, config, "app", "sleep 300")
            guard.heard("Synchronize", 2)  # it was disconnected for that, and came back
        eventually(lambda: "NRI plugin 10-guard is gone" in sandbox.log.rpartition("is synchronized")[2])
        with pytest.raises(grpc.RpcError, match="is not connected"):
            pods.create(pod, config, "app", "sleep 300")
        pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=TIMEOUT)
        assert sandbox.stub().ListContainers(cri.ListContainersRequest(), timeout=TIMEOUT).containers == []


def _processes(program: Path) -> list[int]:
    """The live processes of an installed plugin."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().split(b"\0")[0] == os.fsencode(program):
                found.append(int(entry.name))
    return found
