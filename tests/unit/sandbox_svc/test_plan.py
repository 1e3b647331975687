"""Mount plans: those of image-svc's snapshots are carried out, any other is refused."""

from pathlib import Path

import pytest

from bulkhead.errors import PermissionDenied
from bulkhead.proto import images_pb2
from sandbox_svc import plan

ROOT = Path("/var/lib/bulkhead/snapshots")
OVERLAY = ["index=off", f"workdir={ROOT}/9/work", f"upperdir={ROOT}/9/fs", f"lowerdir={ROOT}/2/fs:{ROOT}/1/fs"]


def answer(*options: str, type: str = "overlay", source: str = "overlay", **fields: str) -> images_pb2.PrepareResponse:
    """Return a plan of one mount."""
    mount = images_pb2.Mount(type=type, source=source, options=options, target=fields.pop("target", ""))
    return images_pb2.PrepareResponse(mounts=[mount], **fields)


@pytest.mark.parametrize(
    "plan_",
    [
        answer(*OVERLAY, upper_dir=f"{ROOT}/9/fs"),
        answer("ro", "rbind", type="bind", source=f"{ROOT}/3/fs"),
        images_pb2.PrepareResponse(),
    ],
)
def test_own_snapshots(plan_: images_pb2.PrepareResponse) -> None:
    """What image-svc's snapshotters answer with passes."""
    plan.check(plan_, ROOT)


@pytest.mark.parametrize(
    "plan_",
    [
        answer("rw", "rbind", type="bind", source="/"),
        answer("rw", "rbind", type="bind", source=f"{ROOT}/../fs"),
        answer("rw", "rbind", type="bind", source=f"{ROOT}/3/fs/etc"),
        answer("rw", type="bind", source=f"{ROOT}/3/fs\n"),
        answer("suid", type="bind", source=f"{ROOT}/3/fs"),
        answer(type="tmpfs", source="tmpfs"),
        answer(*OVERLAY[:2], "upperdir=/etc"),
        answer(*OVERLAY[:3], f"lowerdir={ROOT}/2/fs:/"),
        answer(*OVERLAY[:3], f"lowerdir={ROOT}/2/fs,upperdir=/etc"),
        answer(*OVERLAY[:3], f"lowerdir={ROOT}/2/fs\\:/"),
        answer(*OVERLAY, target="../../etc"),
        answer(*OVERLAY, upper_dir="/etc"),
    ],
)
def test_anything_else(plan_: images_pb2.PrepareResponse) -> None:
    """A plan that reaches elsewhere is refused, however it is written."""
    with pytest.raises(PermissionDenied, match="not made of its snapshots"):
        plan.check(plan_, ROOT)
