"""Linux capabilities: the default set, what a request adds and drops, all of ours for privileged containers."""

from collections.abc import Iterable

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import Json

_SETS = ("bounding", "effective", "permitted")


def apply(spec: Json, wanted: cri.Capability, own: tuple[str, ...]) -> None:
    """Add and drop what the request says; "ALL" comes first, so that single names can correct it.

    Ambient and inheritable capabilities stay empty: what non-root users would get from them is undefined in Kubernetes.
    """
    present = list(spec["process"]["capabilities"].get("bounding") or ())
    if _has_all(wanted.add_capabilities):
        present = list(own)
    if _has_all(wanted.drop_capabilities):
        present = []
    for name in _names(wanted.add_capabilities):
        if name not in present:
            present.append(name)
    dropped = set(_names(wanted.drop_capabilities))
    replace(spec, [name for name in present if name not in dropped])


def replace(spec: Json, names: Iterable[str]) -> None:
    """Make those the bounding, effective and permitted set."""
    spec["process"]["capabilities"] = {member: list(names) for member in _SETS}


def clear_ambient(spec: Json) -> None:
    """Drop ambient capabilities that a base_runtime_spec may have brought."""
    spec["process"]["capabilities"].pop("ambient", None)


def _has_all(names: Iterable[str]) -> bool:
    return any(name.upper() == "ALL" for name in names)


def _names(names: Iterable[str]) -> list[str]:
    """Return CRI names (without prefix, any case) as the kernel's headers write them."""
    upper = (name.upper() for name in names)
    return [name if name.startswith("CAP_") else f"CAP_{name}" for name in upper if name != "ALL"]
