"""The CNI client with the real plugins, in a network namespace that plays the host."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead import command
from bulkhead.config.model import Cni
from bulkhead.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from sandbox_svc import linux, netns
from sandbox_svc.cni import AddResult, Attachment, Manager

pytestmark = pytest.mark.root

PLUGINS = "/usr/lib/cni"


@dataclass
class Host:
    """A scratch directory, a configuration in it, and the namespace the test's thread stands in."""

    directory: Path

    @property
    def conf_dir(self) -> Path:
        return self.directory / "net.d"

    @property
    def leases(self) -> list[str]:
        found = (self.directory / "ipam").glob("*/*")
        return sorted(path.name for path in found if path.name[0].isdigit() or ":" in path.name)

    def write(self, file: str = "10-test.conflist", **changes: Any) -> None:
        self.conf_dir.mkdir(exist_ok=True)
        (self.conf_dir / file).write_text(json.dumps(conflist(self.directory) | changes))

    def manager(self, timeout: float = 30.0, **changes: Any) -> Manager:
        return Manager(replace(Cni(bin_dirs=(PLUGINS,), conf_dir=str(self.conf_dir)), **changes), timeout)

    def pod(self, name: str, **capabilities: Any) -> Attachment:
        path = self.directory / "netns" / f"cni-{name}"
        netns.create(path)
        return Attachment(name, str(path), "default", name, f"uid-{name}", capabilities)


def conflist(directory: Path) -> dict[str, Any]:
    """A dual-stack bridge with masquerade and host ports, as the default one is."""
    ranges = [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]
    ipam = {
        "type": "host-local",
        "dataDir": str(directory / "ipam"),
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "bh-test0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "test", "plugins": [bridge, portmap]}


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of its own: what the plugins make stays in a network namespace that ends with the test."""
    if not os.access(f"{PLUGINS}/bridge", os.X_OK):
        pytest.skip(f"no CNI plugins in {PLUGINS}")
    original = os.open("/proc/self/ns/net", os.O_RDONLY)
    with tempfile.TemporaryDirectory(prefix="bulkhead-cni-") as scratch:
        linux.unshare(linux.CLONE_NEWNET)
        netns.loopback_up()
        directory = Path(scratch)
        try:
            yield Host(directory)
        finally:
            for path in (directory / "netns").glob("*"):
                netns.remove(path)
            linux.setns(original, linux.CLONE_NEWNET)
            os.close(original)


def inside(pod: Attachment, *args: str) -> str:
    """Run a program in a pod's network namespace and return its output."""
    result = command.run(["nsenter", f"--net={pod.netns}", *args], timeout=60)
    assert result.returncode == 0, result.complaint
    return result.stdout.decode()


@contextlib.contextmanager
def serving(pod: Attachment, address: str, port: int) -> Iterator[None]:
    """Have a pod answer one connection with its greeting."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = netns.run_in(Path(pod.netns), lambda: socket.create_server((address, port), family=family))
    server.settimeout(30)
    with server:
        thread = threading.Thread(target=_answer_once, args=(server,))
        thread.start()
        yield
        thread.join()


def exchange(server: Attachment, client: Attachment, address: str) -> bytes:
    """Return what one pod hears from another at its address (bound despite duplicate address detection)."""
    wildcard = "::" if ":" in address else ""
    with serving(server, wildcard, 80):
        return netns.run_in(Path(client.netns), lambda: _hear(address))


def _hear(address: str) -> bytes:
    with socket.create_connection((address, 80), timeout=30) as connection:
        return connection.recv(3)


def links() -> set[str]:
    """The interfaces of the namespace the test stands in."""
    return {name for _, name in socket.if_nameindex()}


def nat_rules() -> str:
    """The nat table, which holds what portmap and the masquerade leave behind."""
    return command.run(["iptables", "-t", "nat", "-S"], timeout=60).stdout.decode()


def test_pods_get_addresses_and_reach_each_other(host: Host) -> None:
    """Two pods get addresses of both families and reach each other; after DEL no lease or interface is left."""
    host.write()
    manager = host.manager()
    assert manager.status().ready
    first, second = host.pod("first"), host.pod("second")
    one, two = manager.add(first), manager.add(second)
    assert one.ip.startswith("10.99.0.")
    assert len(one.additional_ips) == 1
    assert one.additional_ips[0].startswith("fd99::")
    assert exchange(second, first, two.ip) == b"pod"
    assert exchange(second, first, two.additional_ips[0]) == b"pod"
    manager.check(first, one)
    manager.delete(first, one)
    manager.delete(second, two)
    assert host.leases == []
    assert links() == {"lo", "bh-test0"}
    assert "10.99.0" not in nat_rules()


def test_delete_works_after_the_configuration_is_gone(host: Host) -> None:
    """DEL needs neither the configuration nor the namespace, only the kept result, and may be repeated."""
    host.write()
    manager = host.manager()
    pod = host.pod("pod")
    kept = manager.add(pod, None).to_json()
    (host.conf_dir / "10-test.conflist").unlink()
    netns.remove(Path(pod.netns))
    result = AddResult.from_json(kept)
    fresh = host.manager()
    for _ in range(2):
        fresh.delete(Attachment.from_json(pod.to_json()), result)
        assert host.leases == []
    assert not fresh.status().ready


def test_delete_of_a_plan_frees_what_a_crash_left(host: Host) -> None:
    """A plan written down before ADD is enough to undo an ADD whose result was lost."""
    host.write()
    manager = host.manager()
    pod = host.pod("pod")
    plan = manager.plan(pod)
    manager.add(pod, plan)
    assert host.leases
    manager.delete(pod, AddResult.from_json(plan.to_json()))
    assert host.leases == []
    assert links() == {"lo", "bh-test0"}


def test_a_host_port_leads_to_the_pod(host: Host) -> None:
    """A port mapping makes a host port answer with what the pod serves, until DEL."""
    host.write()
    manager = host.manager()
    ports = [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    pod = host.pod("pod", portMappings=ports)
    result = manager.add(pod)
    assert result.networks[0].skipped == ()
    address = command.run(["hostname", "-I"], timeout=30).stdout.split()[0].decode()
    with serving(pod, "", 80), socket.create_connection((address, 18080), timeout=30) as client:
        assert client.recv(3) == b"pod"
    assert "18080" in nat_rules()
    manager.delete(pod, result)
    assert "18080" not in nat_rules()
    assert host.leases == []


def test_a_failing_plugin_leaves_nothing(host: Host) -> None:
    """When a later plugin of the chain fails, the error names it and the plan undoes the earlier ones."""
    broken = [conflist(host.directory)["plugins"][0], {"type": "tuning", "sysctl": {"net.no.such": "1"}}]
    host.write(plugins=broken)
    manager = host.manager()
    pod = host.pod("pod")
    plan = manager.plan(pod)
    with pytest.raises(Unavailable, match=r'CNI ADD eth0: network "test", plugin "tuning" \(2 of 2\): failed after'):
        manager.add(pod, plan)
    manager.delete(pod, plan)
    assert host.leases == []
    assert links() == {"lo", "bh-test0"}


def test_a_hanging_plugin_is_killed_and_named(host: Host) -> None:
    """A chain that exceeds its time ends, and the error names plugin and limit."""
    bins = host.directory / "bin"
    bins.mkdir()
    (bins / "sleepy").write_text("#!/bin/sh\nsleep 60\n")
    (bins / "sleepy").chmod(0o755)
    host.write(plugins=[{"type": "sleepy"}])
    manager = host.manager(timeout=0.3, bin_dirs=(str(bins),))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r'plugin "sleepy": killed after 0\.3 s, the chain has 0\.3 s'):
        manager.add(host.pod("pod"))
    assert time.monotonic() - began < 30


def test_unsupported_version_is_the_configurations_fault(host: Host) -> None:
    """A plugin that does not speak the configuration's version is reported as a failed precondition."""
    host.write(cniVersion="1.1.0")
    pod = host.pod("pod")
    with pytest.raises(FailedPrecondition, match="code 1"):
        host.manager().add(pod)


def test_two_networks_give_two_interfaces(host: Host) -> None:
    """Without a limit on files every network is attached, in order, as eth0 and eth1."""
    host.write()
    second = conflist(host.directory)
    second["plugins"][0] |= {"bridge": "bh-test1"}
    second["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.98.0.0/24"}]]
    host.write("20-second.conflist", name="second", plugins=second["plugins"])
    for serially in (False, True):
        manager = host.manager(max_conf_num=0, setup_serially=serially)
        pod = host.pod(f"pod-{serially}")
        result = manager.add(pod)
        assert result.interfaces == ("eth0", "eth1")
        assert result.ip.startswith("10.99.0.")
        assert "10.98.0." in inside(pod, "ip", "-4", "addr", "show", "eth1")
        manager.delete(pod, result)
    assert host.leases == []


def test_the_loopback_plugin_can_be_asked_for(host: Host) -> None:
    """With use_internal_loopback off, the loopback plugin runs as a network of its own."""
    host.write()
    manager = host.manager(use_internal_loopback=False)
    pod = host.pod("pod")
    result = manager.add(pod)
    assert [network.interface for network in result.networks] == ["lo", "eth0"]
    assert result.ip.startswith("10.99.0.")
    manager.delete(pod, result)
    assert host.leases == []


def test_nothing_leaks_from_many_pods_at_once(host: Host) -> None:
    """Pods attached and detached side by side get different addresses and leave neither lease nor interface."""
    host.write()
    manager = host.manager()
    pods = [host.pod(f"pod-{number}") for number in range(6)]
    results: dict[str, AddResult] = {}
    threads = [
        threading.Thread(target=lambda pod=pod: results.update({pod.sandbox_id: manager.add(pod)})) for pod in pods
    ]
    _run_all(threads)
    assert len({result.ip for result in results.values()}) == len(pods)
    _run_all([threading.Thread(target=manager.delete, args=(pod, results[pod.sandbox_id])) for pod in pods])
    assert host.leases == []
    assert links() == {"lo", "bh-test0"}
    assert "10.99.0" not in nat_rules()


def _answer_once(server: socket.socket) -> None:
    with server.accept()[0] as connection:
        connection.sendall(b"pod")


def _run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
