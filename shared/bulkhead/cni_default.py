"""The pod network of a node that has none: a bridge, written when a stack starts on built-in defaults."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bulkhead.errors import NotFound
from bulkhead.files import write_atomic

FILE = "10-bulkhead-bridge.conflist"
BRIDGE = "bulkhead0"
RANGES = {"0.0.0.0/0": "10.88.0.0/16", "::/0": "fd88::/64"}
_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


def write(conf_dir: Path, bin_dirs: Sequence[str]) -> Path | None:
    """Write the bridge into a directory without any file and return its path; None if there is a configuration.

    NotFound names the plugins that it needs and that are in none of bin_dirs.
    """
    if conf_dir.is_dir() and any(conf_dir.iterdir()):
        return None
    missing = [name for name in ("bridge", "host-local") if not _present(name, bin_dirs)]
    if missing:
        raise NotFound(f"no pod network: the CNI plugins {', '.join(missing)} are not in {', '.join(bin_dirs)}")
    conf_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = conf_dir / FILE
    write_atomic(path, _text(_has_ipv6(), _present("portmap", bin_dirs)), 0o644)
    return path


def remove(path: Path) -> None:
    """Remove the file that write() made, unless somebody has changed it since."""
    for ipv6 in (True, False):
        for ports in (True, False):
            if path.exists() and path.read_bytes() == _text(ipv6, ports):
                path.unlink()


def conflist(*, ipv6: bool, ports: bool) -> dict[str, Any]:
    """Return the network: masqueraded, with host ports if the portmap plugin is there.

    Its version is the newest that the plugins of current distributions speak.
    """
    routes = [route for route in RANGES if ipv6 or route != "::/0"]
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": RANGES[route]}] for route in routes],
        "routes": [{"dst": route} for route in routes],
    }
    plugins: list[dict[str, Any]] = [
        {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    ]
    if ports:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {"cniVersion": "1.0.0", "name": "bulkhead", "plugins": plugins}


def _text(ipv6: bool, ports: bool) -> bytes:
    return json.dumps(conflist(ipv6=ipv6, ports=ports), indent=2).encode() + b"\n"


def _present(name: str, bin_dirs: Sequence[str]) -> bool:
    return any(os.access(Path(directory) / name, os.X_OK) for directory in bin_dirs)


def _has_ipv6() -> bool:
    try:
        return _IPV6.read_text().strip() == "0"
    except OSError:
        return False
