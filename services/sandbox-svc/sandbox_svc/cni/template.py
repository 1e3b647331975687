"""CNI configuration from the administrator's template: containerd's `conf_template`.

The kubelet delivers the node's pod ranges by UpdateRuntimeConfig.
"""

import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from bulkhead.config.model import Cni
from bulkhead.errors import InvalidArgument
from bulkhead.files import write_atomic
from sandbox_svc.cni import gotemplate

#: The name of the file written; containerd's is 10-containerd-net.conflist, which stays containerd's.
TEMPLATED_FILE = "10-bulkhead-net.conflist"


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


def apply(config: Cni, pod_cidr: str, *, configured: bool) -> Path | None:
    """Do what UpdateRuntimeConfig asks for: write the node's network from the template, and return the file.

    pod_cidr is the kubelet's list of ranges, separated by commas. Nothing is done, as in containerd, without ranges,
    without a template, or where the node has a valid configuration already (configured).
    """
    ranges = [text.strip() for text in pod_cidr.split(",") if text.strip()]
    if not ranges or not config.conf_template:
        return None
    default_routes(ranges)  # ranges that are none are the caller's mistake, whatever is configured
    if configured:
        return None
    return write_from_template(Path(config.conf_template), Path(config.conf_dir), ranges)


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
    conf_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = conf_dir / TEMPLATED_FILE
    write_atomic(path, text.encode(), 0o644)
    return path
