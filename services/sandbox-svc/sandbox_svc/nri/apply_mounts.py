"""What an adjustment changes in a container's mounts."""

import posixpath
from collections.abc import Callable, Sequence

from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd import nri_pb2 as nri
from sandbox_svc.nri.keys import removal
from sandbox_svc.oci import mounts as oci_mounts
from sandbox_svc.oci.model import Json

_PROPAGATIONS = ("rprivate", "rshared", "rslave")


def mounts(spec: Json, wanted: Sequence[nri.Mount], propagation: Callable[[str], str]) -> None:
    """Add, replace and remove mounts by their place, then order all: shallow places before deep ones."""
    if not wanted:
        return
    for mount in wanted:
        place, gone = removal(mount.destination)
        if not place.startswith("/"):
            raise FailedPrecondition(f"NRI adjustment.mounts: destination is {place!r}, expected an absolute path")
        oci_mounts.drop(spec, _clean(place))
        if not gone:
            _propagate(spec, mount, propagation)
            spec["mounts"].append(_entry(mount))
    spec["mounts"].sort(key=lambda mount: (_depth(mount["destination"]), mount["destination"]))


def _entry(mount: nri.Mount) -> Json:
    found = {"type": mount.type, "source": mount.source, "options": list(mount.options)}
    return {"destination": mount.destination, **{name: value for name, value in found.items() if value}}


def _propagate(spec: Json, mount: nri.Mount, propagation: Callable[[str], str]) -> None:
    """Let the rootfs propagate as far as a mount shall, after checking that the source's own mount can."""
    asked = [option for option in mount.options if option in _PROPAGATIONS]
    if not asked or asked[-1] == "rprivate":
        return
    enough = ("shared",) if asked[-1] == "rshared" else ("shared", "slave")
    if (actual := propagation(mount.source)) not in enough:
        raise FailedPrecondition(
            f"NRI adjustment.mounts: {mount.destination} is {asked[-1]}, "
            f"and its source {mount.source} is on a {actual} mount, expected a {' or '.join(enough)} one"
        )
    if spec["linux"].get("rootfsPropagation") != "rshared":
        spec["linux"]["rootfsPropagation"] = asked[-1]


def _depth(destination: str) -> int:
    return _clean(destination).count("/")


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")
