"""The commands of the specification over one network: its plugins in order, each given the result before it.

Three kinds of plugin are not run although the configuration names them, because they would do nothing: `loopback`
(the loopback is up since the namespace was made), and `portmap` and `bandwidth` for a pod that has no host ports and
no limits. Each saves some 4 ms of a pod's start.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandbox_svc import netns
from sandbox_svc.cni import conf, plugin
from sandbox_svc.cni.model import Attachment, NetworkResult

#: Plugin types that only serve one capability, and the settings that give them work without it.
_IDLE_WITHOUT = {
    "portmap": ("portMappings", ()),
    "bandwidth": ("bandwidth", ("ingressRate", "ingressBurst", "egressRate", "egressBurst")),
}


@dataclass(frozen=True)
class Runner:
    """How plugins are run: where they are, how many seconds a chain may take, and whether loopback is ours."""

    directories: Sequence[str]
    limit: float
    internal_loopback: bool = True

    def add(self, planned: NetworkResult, attachment: Attachment) -> NetworkResult:
        """Attach the pod to one network and return the final result."""
        deadline = time.monotonic() + self.limit
        variables = _variables(planned.interface, attachment)
        result: Mapping[str, Any] | None = None
        for step, entry in _steps("ADD", planned):
            if entry["type"] in planned.skipped or self._is_loopback(entry):
                continue
            given = _input(planned.conf, entry, attachment, result)
            result = plugin.run(step, self.directories, given, variables, deadline, self.limit)
            result.setdefault("cniVersion", planned.conf["cniVersion"])
        return replace(planned, result=result or _loopback_result(planned, attachment))

    def delete(self, attached: NetworkResult, attachment: Attachment) -> None:
        """Detach the pod from one network; a namespace that is gone is passed as none, as the specification allows."""
        present = netns.is_namespace(attachment.netns)
        variables = _variables(attached.interface, attachment if present else replace(attachment, netns=""))
        previous = attached.result if conf.version(dict(attached.conf)) >= (0, 4, 0) else None
        deadline = time.monotonic() + self.limit
        for step, entry in reversed(list(_steps("DEL", attached))):
            if entry["type"] in attached.skipped or self._is_loopback(entry):
                continue
            given = _input(attached.conf, entry, attachment, previous)
            try:
                plugin.run(step, self.directories, given, variables, deadline, self.limit)
            except (plugin.PluginFailed, plugin.PluginMisconfigured) as error:
                if not _means_gone(str(error), present=present):
                    raise

    def check(self, attached: NetworkResult, attachment: Attachment) -> None:
        """Ask the plugins whether the pod's attachment is as ADD left it; raise what they complain of.

        Networks before 0.4.0, and those with disableCheck, pass.
        """
        if conf.version(dict(attached.conf)) < (0, 4, 0) or attached.conf.get("disableCheck"):
            return
        variables = _variables(attached.interface, attachment)
        deadline = time.monotonic() + self.limit
        for step, entry in _steps("CHECK", attached):
            if entry["type"] not in attached.skipped and not self._is_loopback(entry):
                given = _input(attached.conf, entry, attachment, attached.result)
                plugin.run(step, self.directories, given, variables, deadline, self.limit)

    def status(self, network: conf.Network, limit: float) -> None:
        """Ask the plugins of a network whether ADD would work now; raise the first refusal (1.1.0 and later)."""
        self._without_pod("STATUS", network, {}, limit)

    def collect(self, network: conf.Network, valid: Iterable[tuple[str, str]]) -> None:
        """Have the plugins free what belongs to no (sandbox id, interface) in valid (GC; 1.1.0 and later)."""
        if network.get("disableGC"):
            return
        attachments = [{"containerID": sandbox, "ifname": interface} for sandbox, interface in valid]
        # libcni's first release with GC read the second name, before the specification was corrected
        keys = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
        self._without_pod("GC", network, keys, self.limit)

    def _without_pod(self, command: str, network: conf.Network, extra: Mapping[str, Any], limit: float) -> None:
        if conf.version(network) < (1, 1, 0):
            return
        deadline = time.monotonic() + limit
        for step, entry in _steps(command, NetworkResult("", network)):
            if not self._is_loopback(entry):
                plugin.run(step, self.directories, {**_head(network, entry), **extra}, {}, deadline, limit)

    def _is_loopback(self, entry: Mapping[str, Any]) -> bool:
        return self.internal_loopback and entry["type"] == "loopback"


def idle_plugins(network: Mapping[str, Any], attachment: Attachment) -> tuple[str, ...]:
    """Return the types of the network's plugins that have nothing to do for this pod."""
    return tuple(entry["type"] for entry in network["plugins"] if _is_idle(entry, attachment))


def _is_idle(entry: Mapping[str, Any], attachment: Attachment) -> bool:
    if entry["type"] not in _IDLE_WITHOUT:
        return False
    capability, settings = _IDLE_WITHOUT[entry["type"]]
    return not attachment.capabilities.get(capability) and not any(entry.get(key) for key in settings)


def _steps(command: str, network: NetworkResult) -> Iterator[tuple[plugin.Step, dict[str, Any]]]:
    plugins = network.conf["plugins"]
    for number, entry in enumerate(plugins, 1):
        position = f" ({number} of {len(plugins)})" if len(plugins) > 1 else ""
        yield plugin.Step(command, network.name, entry["type"], position, network.interface), entry


def _variables(interface: str, attachment: Attachment) -> dict[str, str]:
    return {
        "CNI_CONTAINERID": attachment.sandbox_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": interface,
        "CNI_ARGS": attachment.args,
    }


def _head(network: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "name": network["name"], "cniVersion": network["cniVersion"]}


def _input(
    network: Mapping[str, Any], entry: Mapping[str, Any], attachment: Attachment, previous: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return a plugin's input: its entry, the network's head, the capabilities it declares, the result before it."""
    given = _head(network, entry)
    declared = [name for name, wanted in (entry.get("capabilities") or {}).items() if wanted]
    if runtime := {name: attachment.capabilities[name] for name in declared if name in attachment.capabilities}:
        given["runtimeConfig"] = runtime
    if previous is not None:
        given["prevResult"] = previous
    return given


def _loopback_result(planned: NetworkResult, attachment: Attachment) -> dict[str, Any]:
    """Return what the loopback plugin answers: the result of a network that has no other."""
    interface = {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": attachment.netns}
    ips = [{"address": address, "interface": 0} for address in ("127.0.0.1/8", "::1/128")]
    return {"cniVersion": planned.conf["cniVersion"], "interfaces": [interface], "ips": ips}


def _means_gone(message: str, *, present: bool) -> bool:
    """Return whether a plugin's DEL failed only because there is nothing left, as plugins wrongly do.

    The specification wants success then. The two phrases are those go-cni forgives.
    """
    return "not found" in message or (not present and "no such file or directory" in message)
