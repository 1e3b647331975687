"""What this host and its runtimes lack, found out by asking them: each probe returns why, or "" where nothing lacks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.images import UPSTREAM_DIGEST

_APPARMOR = Path("/sys/module/apparmor/parameters/enabled")


def apparmor(runtime: str) -> str:
    """AppArmor enforces nothing in a kernel that has not loaded it."""
    if not _APPARMOR.exists():
        return f"this kernel has no AppArmor ({_APPARMOR} does not exist)"
    said = _APPARMOR.read_text().strip()
    return "" if said == "Y" else f"AppArmor is off ({_APPARMOR} says {said})"


def user_namespaces(runtime: str) -> str:
    """User namespaces of pods need a runtime that mounts volumes with mapped ids, and says so."""
    features = _features(runtime)
    idmap = ((features.get("linux") or {}).get("mountExtensions") or {}).get("idmap") or {}
    return "" if idmap.get("enabled") else f"{runtime} cannot map the ids of mounts ({_said(features)})"


def recursive_read_only(runtime: str) -> str:
    """Recursive read-only mounts need the runtime's option `rro`."""
    features = _features(runtime)
    return "" if "rro" in features.get("mountOptions", []) else f"{runtime} has no mount option rro ({_said(features)})"


def upstream_digest(runtime: str) -> str:
    """A manifest of our own making never has the digest of the upstream build, which the suite pins."""
    return f"the suite pins {UPSTREAM_DIGEST}, which only the upstream registry can serve"


def _features(runtime: str) -> dict[str, Any]:
    """Return what `features` prints; empty for a runtime that lacks the command."""
    done = subprocess.run([runtime, "features"], capture_output=True, text=True, timeout=20, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(features: dict[str, Any]) -> str:
    return "its command `features` does not list it" if features else "it has no command `features`"


#: Probe name in expected.toml -> the probe, given the path of the OCI runtime under test.
PROBES: dict[str, Callable[[str], str]] = {
    probe.__name__: probe for probe in (apparmor, user_namespaces, recursive_read_only, upstream_digest)
}
