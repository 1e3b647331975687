"""Real NRI plugins connected to a real sandbox-svc."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulkhead import paths
from support.nri import Plugin, end, eventually, launch
from support.sandbox import Sandbox


class Plugins:
    """Starts plugins and ends them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.directory = sandbox.directory / "nri"
        self._running: list[Plugin] = []

    def connect(self, name: str, *arguments: str) -> Plugin:
        """Run a plugin "NN-name" with these arguments of tests/conformance/nriplugin; it is synchronized on return."""
        log = self.directory / f"{name}.log"
        log.unlink(missing_ok=True)
        plugin = launch(name, self.directory / "run" / "nri.sock", log, *arguments)
        self._running.append(plugin)
        plugin.heard("Synchronize")
        return plugin

    def adjust(self, name: str, adjustment: dict[str, Any], *arguments: str) -> Plugin:
        """Run a plugin that asks for an adjustment of every container that is made."""
        return self.connect(name, "-answer", f"CreateContainer={json.dumps({'adjust': adjustment})}", *arguments)

    def disconnect(self, plugin: Plugin, timeout: float = 60.0) -> None:
        """End a plugin, and wait until sandbox-svc has noticed."""
        self._running.remove(plugin)
        text = f"NRI plugin {plugin.name} is gone"
        before = self.sandbox.log.count(text)
        end(plugin)
        eventually(lambda: self.sandbox.log.count(text) > before, timeout)

    def close(self) -> None:
        """End every plugin that is left."""
        for plugin in self._running[:]:
            with contextlib.suppress(AssertionError):
                self.disconnect(plugin, 10.0)  # it may have gone before


@contextmanager
def plugins_of(sandbox: Sandbox) -> Iterator[Plugins]:
    """Hand out a starter of plugins, and end what it started."""
    made = Plugins(sandbox)
    try:
        yield made
    finally:
        made.close()


def spec_of(sandbox: Sandbox, ident: str) -> dict[str, Any]:
    """Return the config.json of a container's bundle."""
    found: dict[str, Any] = json.loads((paths.bundle(sandbox.state, ident) / "config.json").read_text())
    return found


def limit(sandbox: Sandbox, ident: str, controller: str, v1: str, v2: str) -> str:
    """Return what a file of a container's cgroup says."""
    path = str(spec_of(sandbox, ident)["linux"]["cgroupsPath"]).lstrip("/")
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return (root / path / v2).read_text().strip()
    return (root / controller / path / v1).read_text().strip()


def same_namespace(kind: str, text: str) -> bool:
    """Tell whether a link of /proc/<pid>/ns is that of this process."""
    return os.readlink(f"/proc/self/ns/{kind}") == text.strip()
