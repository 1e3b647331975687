"""CNI configuration that Bulkhead writes itself: from the administrator's template, or a plain bridge.

The template is containerd's `conf_template`; the kubelet delivers the node's pod ranges by UpdateRuntimeConfig. The
plain bridge is for a node that has no configuration at all and should run pods all the same (`bulkhead up`).
"""

import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.files import write_atomic
from sandbox_svc.cni import gotemplate, plugin

#: The names of the files written; containerd's is 10-containerd-net.conflist, which stays containerd's.
TEMPLATED_FILE = "10-bulkhead-net.conflist"
DEFAULT_FILE = "10-bulkhead-bridge.conflist"

DEFAULT_RANGES = ("10.88.0.0/16", "fd88::/64")
DEFAULT_BRIDGE = "bulkhead0"


def fill(template: str, pod_cidrs: Sequence[str]) -> str:
    """Return a template filled with .PodCIDR (the first range), .PodCIDRRanges and .Routes (a default route a family).

    InvalidArgument names a range that is none, or the template's line that is wrong.
    """
    if not pod_cidrs:
        raise InvalidArgument("no pod CIDR to fill the CNI template with")
    data = {"PodCIDR": pod_cidrs[0], "PodCIDRRanges": list(pod_cidrs), "Routes": default_routes(pod_cidrs)}
    return gotemplate.render(template, data)


def default_routes(cidrs: Sequence[str]) -> list[str]:
    """Return the default routes of the families that the ranges belong to, IPv4 first."""
    try:
        families = {ipaddress.ip_network(cidr, strict=False).version for cidr in cidrs}
    except ValueError as error:
        raise InvalidArgument(f"pod CIDR: {error}") from error
    return [route for family, route in ((4, "0.0.0.0/0"), (6, "::/0")) if family in families]


def write_from_template(template: Path, conf_dir: Path, pod_cidrs: Sequence[str]) -> Path:
    """Fill the template file and write the result into the configuration directory; return the file written.

    A result that is not JSON is refused, with the template's name, and nothing is written.
    """
    try:
        text = fill(template.read_text(), pod_cidrs)
        json.loads(text)
    except OSError as error:
        raise InvalidArgument(f"conf_template {template}: {error.strerror}") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"conf_template {template}: {error}") from error
    except ValueError as error:
        raise InvalidArgument(f"conf_template {template}: the filled template is not JSON: {error}") from error
    return _write(conf_dir / TEMPLATED_FILE, text)


def write_default(conf_dir: Path, bin_dirs: Sequence[str], ranges: Sequence[str] = ()) -> Path | None:
    """Write the plain bridge into a configuration directory that has no file yet; return the file, None if it has.

    NotFound names the plugins that are missing.
    """
    if conf_dir.is_dir() and any(conf_dir.iterdir()):
        return None
    missing = [name for name in ("bridge", "host-local") if not _present(name, bin_dirs)]
    if missing:
        raise NotFound(f"no default pod network: plugins {', '.join(missing)} are not in {', '.join(bin_dirs)}")
    usable = ranges or (DEFAULT_RANGES if has_ipv6() else DEFAULT_RANGES[:1])
    network = bridge(usable, ports=_present("portmap", bin_dirs))
    return _write(conf_dir / DEFAULT_FILE, json.dumps(network, indent=2) + "\n")


def bridge(ranges: Sequence[str], *, name: str = DEFAULT_BRIDGE, ports: bool = True) -> dict[str, Any]:
    """Return a network on a bridge of the node, with an address for each range, masqueraded towards the outside.

    Its version, 1.0.0, is the newest that distributions' plugins speak.
    """
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}] for subnet in ranges],
        "routes": [{"dst": route} for route in default_routes(ranges)],
    }
    plugins: list[dict[str, Any]] = [
        {"type": "bridge", "bridge": name, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    ]
    if ports:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    return {"cniVersion": "1.0.0", "name": "bulkhead", "plugins": plugins}


def has_ipv6() -> bool:
    """Return whether the kernel has IPv6 and it is not switched off for new interfaces."""
    try:
        return Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _present(name: str, directories: Sequence[str]) -> bool:
    try:
        return os.path.exists(plugin.find(name, directories))
    except NotFound:
        return False


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_atomic(path, text.encode(), 0o644)
    return path
