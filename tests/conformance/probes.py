"""What this host and its runtimes lack, found out by asking them: each probe returns why, or "" where nothing lacks."""

import http.client
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.images import DIGEST_REPOSITORY, UPSTREAM_DIGEST

_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


@dataclass(frozen=True)
class Subject:
    """What is asked: the path of the OCI runtime under test, and the "host:port" of the registry of the images."""

    runtime: str
    registry: str


def apparmor(subject: Subject) -> str:
    """AppArmor enforces nothing in a kernel that has not loaded it."""
    if not _APPARMOR.exists():
        return f"this kernel has no AppArmor ({_APPARMOR} does not exist)"
    said = _APPARMOR.read_text().strip()
    return "" if said == "Y" else f"AppArmor is off ({_APPARMOR} says {said})"


def user_namespaces(subject: Subject) -> str:
    """User namespaces of pods need a runtime that mounts volumes with mapped ids, and says so."""
    features = _features(subject.runtime)
    idmap = ((features.get("linux") or {}).get("mountExtensions") or {}).get("idmap") or {}
    said = "its command `features` does not list it" if features else "it has no command `features`"
    return "" if idmap.get("enabled") else f"{subject.runtime} cannot map the ids of mounts ({said})"


def upstream_digest(subject: Subject) -> str:
    """The suite pins the digest of the upstream build of an image; a registry without that build cannot serve it."""
    connection = http.client.HTTPConnection(subject.registry, timeout=20)
    try:
        connection.request("HEAD", f"/v2/{DIGEST_REPOSITORY}/manifests/{UPSTREAM_DIGEST}")
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if status == 200 else f"the registry answers {status} for {UPSTREAM_DIGEST}, which the suite pins"


def _features(runtime: str) -> dict[str, Any]:
    """Return what `features` prints; empty for a runtime that lacks the command."""
    done = subprocess.run([runtime, "features"], capture_output=True, text=True, timeout=20, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


#: Probe name in expected.toml -> the probe.
PROBES: dict[str, Callable[[Subject], str]] = {
    probe.__name__: probe for probe in (apparmor, user_namespaces, upstream_digest)
}
