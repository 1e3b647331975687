"""The interfaces of a network namespace with their addresses, for verbose status, recovery and `bulkhead doctor`.

This is pyroute2's place: netlink dumps of links and addresses in one shape for every kernel. It costs 21 MB in a
process that imports it, so that happens at the first question, which the life of a pod does not ask.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_svc import netns
from sandbox_svc.cni.model import AddResult, addresses


@dataclass(frozen=True)
class Link:
    """One interface: addresses are with prefix length ("10.88.0.2/16"), without link-local ones."""

    name: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...] = ()


def read(path: Path) -> list[Link]:
    """Return the interfaces of the namespace pinned at path, the loopback included."""
    return netns.run_in(path, _dump)


def missing(path: Path, result: AddResult) -> list[str]:
    """Return what a pod's network lacks of its ADD result, in words; [] when all is there."""
    if not netns.is_namespace(path):
        return [f"network namespace {path} is gone"]
    present = {link.name: {text.partition("/")[0] for text in link.addresses} for link in read(path)}
    found = []
    for network in result.networks:
        if network.interface not in present:
            found.append(f'interface {network.interface} of network "{network.name}" is gone')
            continue
        wanted = addresses(network.result or {}, network.interface)
        found += [
            f"address {address} of interface {network.interface} is gone"
            for address in wanted
            if address not in present[network.interface]
        ]
    return found


def _dump() -> list[Link]:
    import pyroute2  # here, not above: see the module's docstring

    with pyroute2.IPRoute() as kernel:
        given: dict[int, list[str]] = {}
        for entry in kernel.get_addr():
            if entry["scope"] != 253:  # RT_SCOPE_LINK: every interface has one
                given.setdefault(entry["index"], []).append(f"{entry.get('address')}/{entry['prefixlen']}")
        return [_link(entry, given.get(entry["index"], [])) for entry in kernel.get_links()]


def _link(entry: Any, given: list[str]) -> Link:
    return Link(
        name=entry.get("ifname"),
        mac=entry.get("address"),
        mtu=entry.get("mtu"),
        up=entry["state"] == "up",
        addresses=tuple(given),
    )
