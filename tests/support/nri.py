"""Real NRI plugins (tests/conformance/nriplugin) and a node for them that only remembers."""

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bulkhead.config.model import Nri
from bulkhead.proto.containerd import nri_pb2 as nri
from conformance.build import build
from sandbox_svc.nri.hooks import Hooks
from sandbox_svc.nri.runtime import Snapshot


@dataclass
class MemoryNode:
    """The node's side of NRI, without a node."""

    pods: list[nri.PodSandbox] = field(default_factory=list)
    containers: list[nri.Container] = field(default_factory=list)
    updates: list[nri.ContainerUpdate] = field(default_factory=list)
    #: Containers whose update fails.
    stubborn: set[str] = field(default_factory=set)

    def snapshot(self) -> Snapshot:
        """Return what there is."""
        return Snapshot(tuple(self.pods), tuple(self.containers))

    def update_containers(self, updates: Sequence[nri.ContainerUpdate], deadline: float) -> list[nri.ContainerUpdate]:
        """Remember the updates; those of stubborn containers fail."""
        assert deadline > time.monotonic()
        self.updates += updates
        return [one for one in updates if one.container_id in self.stubborn and not one.ignore_failure]


def pod(id: str = "p1", **annotations: str) -> nri.PodSandbox:
    """Return a pod."""
    return nri.PodSandbox(id=id, name="web", uid="u1", namespace="default", annotations=annotations)


def container(id: str = "c1", name: str = "app") -> nri.Container:
    """Return a container of pod p1."""
    return nri.Container(id=id, pod_sandbox_id="p1", name=name, args=["/bin/app"], env=["A=1", "B=2"])


@dataclass
class Plugin:
    """A running plugin and what it heard."""

    name: str
    log: Path
    #: The process, if the test started it.
    process: subprocess.Popen[bytes] | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Everything it heard so far."""
        text = self.log.read_text() if self.log.exists() else ""
        # What stands behind the last line feed is still being written.
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def events(self) -> list[str]:
        """The names of what it heard."""
        return [line["event"] for line in self.lines]

    def heard(self, event: str, count: int = 1, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until it heard an event that often, and return the last of them."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = [line for line in self.lines if line["event"] == event]
            if len(found) >= count:
                return found[-1]
            time.sleep(0.02)
        raise AssertionError(f"{self.name} heard {self.events()}, not {event}")


def launch(name: str, socket: Path, log: Path, *arguments: str) -> Plugin:
    """Start a plugin "NN-name" with these arguments of tests/conformance/nriplugin."""
    index, _, base = name.partition("-")
    program, null = build("nriplugin")["nriplugin"], subprocess.DEVNULL
    command: list[str | Path] = [program, "-socket", socket, "-name", base, "-idx", index, "-log", log, *arguments]
    return Plugin(name, log, subprocess.Popen(command, stdin=null, stdout=null, stderr=null))


def end(plugin: Plugin) -> None:
    """Kill a plugin that was started, and reap it."""
    assert plugin.process is not None
    plugin.process.kill()
    plugin.process.wait(30)


@contextmanager
def connected(name: str, socket: Path, log: Path, *arguments: str) -> Iterator[Plugin]:
    """Run a plugin that is synchronized when the block begins and killed when it ends."""
    plugin = launch(name, socket, log, *arguments)
    try:
        plugin.heard("Synchronize")
        yield plugin
    finally:
        end(plugin)


class Bench:
    """Hooks in this process, in a scratch directory, and real plugins connected to them."""

    def __init__(self, directory: Path, program: Path, **options: Any) -> None:
        self.directory, self.program = directory, program
        (directory / "plugins").mkdir()
        (directory / "conf.d").mkdir()
        self.node = MemoryNode()
        self.config = replace(
            Nri(
                plugin_path=str(directory / "plugins"),
                plugin_config_path=str(directory / "conf.d"),
                socket_path=str(directory / "run" / "nri.sock"),
                # A plugin on a busy machine takes its time; where a test is about too slow a one, it says how slow.
                plugin_registration_timeout=30.0,
                plugin_request_timeout=20.0,
            ),
            **options,
        )
        self.hooks = Hooks(self.config, self.node, "1.2.3")
        self._running: list[Plugin] = []

    def connect(self, name: str, *arguments: str, wait: bool = True) -> Plugin:
        """Run a plugin "NN-name" that connects; unless told not to, wait until it is asked like any other."""
        plugin = launch(name, Path(self.config.socket_path), self.directory / f"{name}.log", *arguments)
        self._running.append(plugin)
        if wait:
            eventually(lambda: name in self.names())
        return plugin

    def install(self, name: str, *arguments: str, settings: str = "") -> Plugin:
        """Put a plugin into the directory of those that are started by the runtime."""
        target = self.directory / "plugins" / name
        target.write_bytes(self.program.read_bytes())
        target.chmod(0o755)
        log = self.directory / f"{name}.log"
        Path(f"{target}.args").write_text("\n".join(["-log", str(log), *arguments]))
        if settings:
            (self.directory / "conf.d" / f"{name}.conf").write_text(settings)
        return Plugin(name, log)

    def names(self) -> list[str]:
        """The plugins that are asked, in order."""
        return [plugin.name for plugin in self.hooks._registry.plugins]

    def close(self) -> None:
        """End everything."""
        self.hooks.stop()
        for plugin in self._running:
            end(plugin)


def eventually(true: Callable[[], bool], timeout: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


@contextmanager
def bench(program: Path, start: bool = True, **options: Any) -> Iterator[Bench]:
    """Run hooks in a scratch directory."""
    with tempfile.TemporaryDirectory(prefix="bhnri") as directory:
        made = Bench(Path(directory), program, **options)
        if start:
            made.hooks.start()
        try:
            yield made
        finally:
            made.close()


def in_thread(work: Callable[[], Any]) -> "threading.Thread":
    """Run something beside the test."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
