"""OCI bundles on disk: config.json and the empty rootfs the shim mounts on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bulkhead.proto import images_pb2
from sandbox_svc.oci.model import Json
from sandbox_svc.usermap import UserMap


def write(place: Path, spec: Json, users: UserMap | None = None) -> Path:
    """Make a bundle and return its directory; root's alone, for a spec may carry secrets in its environment.

    In a user namespace the container's root, another user of the node, must reach its rootfs through the directory.
    """
    place.mkdir(parents=True, mode=0o700)
    if users is not None:
        os.chown(place, -1, users.root[1])
        place.chmod(0o710)
    (place / "rootfs").mkdir(mode=0o755)
    config = place / "config.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps(spec, separators=(",", ":")))
    return place


def read(place: Path) -> Json:
    """Return a bundle's spec."""
    spec: dict[str, Any] = json.loads((place / "config.json").read_bytes())
    return spec


def write_mounts(place: Path, mounts: Iterable[images_pb2.Mount]) -> None:
    """Keep the plan of the rootfs beside the spec: the mounts are made when the container is started."""
    plan = images_pb2.PrepareResponse(mounts=mounts)
    (place / "mounts.pb").write_bytes(plan.SerializeToString())


def read_mounts(place: Path) -> list[images_pb2.Mount]:
    """Return the plan of the rootfs."""
    return list(images_pb2.PrepareResponse.FromString((place / "mounts.pb").read_bytes()).mounts)
