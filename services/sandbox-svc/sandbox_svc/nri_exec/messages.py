"""What an exec plugin is told on its standard input, and what it answers on its standard output (pure).

Members are those of types/v1 of github.com/containerd/nri v0.1.0 and of its README; the answer's `cgroupsPath`, which
the README has, asks for the container to be made in that cgroup.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox_svc.nri_exec.conf import VERSION, Plugin
from sandbox_svc.oci import bpf
from sandbox_svc.oci.model import Json

#: OCI's types of namespaces and their names in /proc/<pid>/ns.
_NAMESPACES = {
    "pid": "pid",
    "network": "net",
    "mount": "mnt",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
    "time": "time",
}


@dataclass(frozen=True)
class Subject:
    """What a plugin is asked about: a container, or a pod, whose id is then that of its sandbox, too."""

    id: str
    sandbox_id: str
    #: The first process, -1 for none.
    pid: int
    #: The OCI spec.
    spec: Json = field(repr=False)
    #: The pod's.
    labels: Mapping[str, str] = field(default_factory=dict)

    def moved(self, pid: int, cgroups_path: str) -> "Subject":
        """Return the same, made anew in another cgroup."""
        linux = {**self.spec.get("linux", {}), "cgroupsPath": cgroups_path}
        return replace(self, pid=pid, spec={**self.spec, "linux": linux})


@dataclass(frozen=True)
class Answer:
    """A plugin's result, as later plugins of the chain see it, and the cgroup that it wants the container in."""

    result: Json
    cgroups_path: str = ""


def request(plugin: Plugin, state: str, subject: Subject, results: Sequence[Json]) -> bytes:
    """Return what a plugin reads; empty members are left out, as Go does."""
    linux = subject.spec.get("linux") or {}
    annotations = {
        key: value for key, value in (subject.spec.get("annotations") or {}).items() if key != bpf.ANNOTATION
    }
    spec = {
        "resources": linux.get("resources") or {},
        "namespaces": _namespaces(linux.get("namespaces") or (), subject.pid),
        "cgroupsPath": linux.get("cgroupsPath", ""),
        "annotations": annotations,
    }
    document: Json = {
        "version": VERSION,
        "state": state,
        "id": subject.id,
        "sandboxID": subject.sandbox_id,
        "pid": subject.pid,
        "spec": {name: value for name, value in spec.items() if value or name == "resources"},
    }
    optional = {"conf": plugin.conf, "labels": dict(subject.labels), "results": list(results)}
    return json.dumps(document | {name: value for name, value in optional.items() if value}).encode()


def _namespaces(found: Sequence[Json], pid: int) -> dict[str, str]:
    """Return paths by OCI's types; one that is new is the process's. "net" is what the README calls "network"."""
    paths = {}
    for entry in found:
        kind = entry["type"]
        own = f"/proc/{pid}/ns/{_NAMESPACES.get(kind, kind)}" if pid > 0 else ""
        paths[kind] = entry.get("path") or own
    if "network" in paths:
        paths["net"] = paths["network"]
    return paths


def parse(output: bytes, plugin: str) -> Answer:
    """Return what a plugin answered; ValueError says what is wrong with it, or what the plugin says is."""
    if not output.strip():
        raise ValueError("it wrote no result")
    try:
        document = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its result is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("its result is no JSON object")
    if complaint := _text(document, "error"):
        raise ValueError(complaint[:1000])
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata of its result is not an object of strings")
    result = {
        "plugin": _text(document, "plugin") or plugin,
        "version": _text(document, "version") or VERSION,
        "error": "",
        "metadata": metadata,
    }
    return Answer({name: value for name, value in result.items() if value or name != "metadata"}, _path(document))


def _path(document: Mapping[str, Any]) -> str:
    path = _text(document, "cgroupsPath")
    if "\0" in path:
        raise ValueError("cgroupsPath of its result contains a NUL byte")
    return path


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} of its result is {value!r:.100}, expected a string")
    return value
