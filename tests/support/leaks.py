"""What a stack may leave behind on a host, listed before and after."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Host:
    """Everything of this host that a runtime makes and must take away again."""

    mounts: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    rules: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def look(cls, mark: str) -> "Host":
        """List mounts, named network namespaces, links, cgroups, packet filter rules and the processes that
        carry `mark` (a scratch directory) in their command line.
        """
        return cls(_mounts(), _namespaces(), _links(), _cgroups(), _rules(), _processes(mark))

    def left_by(self, after: "Host") -> dict[str, list[str]]:
        """Return what is there after and was not before, by kind; empty when nothing leaked."""
        found = {kind: sorted(getattr(after, kind) - getattr(self, kind)) for kind in self.__dataclass_fields__}
        return {kind: items for kind, items in found.items() if items}


def cgroups_named(name: str) -> list[Path]:
    """Return the control groups of that name, in whatever hierarchy; others may come and go meanwhile."""
    return [Path(root, name) for root, below, _ in os.walk(CGROUP) if name in below]


def _mounts() -> frozenset[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return frozenset(line.split()[4] for line in lines)


def _namespaces() -> frozenset[str]:
    return frozenset(path.name for path in Path("/run/netns").glob("*"))


def _links() -> frozenset[str]:
    out = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True, timeout=30).stdout
    return frozenset(line.split(":")[1].strip() for line in out.splitlines())


def _cgroups() -> frozenset[str]:
    return frozenset(root for root, _, _ in os.walk(CGROUP))


def _rules() -> frozenset[str]:
    rules: set[str] = set()
    for tool in ("iptables-save", "ip6tables-save"):
        out = subprocess.run([tool], check=True, capture_output=True, text=True, timeout=30).stdout
        rules |= {f"{tool}: {line}" for line in out.splitlines() if line.startswith("-A")}
    return frozenset(rules)


def _processes(mark: str) -> frozenset[str]:
    found: set[str] = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in command and int(directory.name) != os.getpid():
            found.add(f"{directory.name} {command.strip()}")
    return frozenset(found)
