"""OCI bundles on disk: config.json and the empty rootfs the shim mounts on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bulkhead.proto import images_pb2
from sandbox_svc.oci.model import Json


def write(place: Path, spec: Json) -> Path:
    """Make a bundle and return its directory; root's alone, for a spec may carry secrets in its environment."""
    place.mkdir(parents=True, mode=0o700)
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
