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


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """Return the directory of a proxy snapshotter with two layers and a container's snapshot."""
    for name in ("1/fs", "2/fs/etc", "9/fs", "9/work"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    (tmp_path / "snapshots/9/fs/out").symlink_to("/")
    (tmp_path / "snapshots/link").symlink_to("9/fs")
    return tmp_path


def foreign(root: Path, **changed: str) -> images_pb2.PrepareResponse:
    """Return what a proxy snapshotter answers with, with some options in another form."""
    own = f"{root}/snapshots"
    options = {"workdir": f"{own}/9/work", "upperdir": f"{own}/9/fs", "lowerdir": f"{own}/2/fs:{own}/1/fs"} | changed
    return answer(*(f"{name}={value}" for name, value in options.items()), upper_dir=f"{own}/9/fs")


def test_snapshots_of_a_proxy(exports: Path) -> None:
    """What lies below its directory passes, as an overlay and as a bind mount."""
    plan.check_foreign(foreign(exports), exports)
    plan.check_foreign(answer("rw", "rbind", type="bind", source=f"{exports}/snapshots/1/fs"), exports)


def test_a_proxys_plan_is_nothing_for_other_snapshotters(exports: Path) -> None:
    """Its directory counts for its own snapshots only."""
    with pytest.raises(PermissionDenied, match="not made of its snapshots"):
        plan.check(foreign(exports), ROOT)


@pytest.mark.parametrize(
    "changed",
    [
        {"lowerdir": "/etc"},
        {"lowerdir": "{root}/snapshots/1/fs:/"},
        {"lowerdir": "{root}/snapshots/../../etc"},
        {"lowerdir": "{root}/snapshots/2/fs/etc"},
        {"lowerdir": "{root}/snapshots/9/fs/out/etc"},
        {"lowerdir": "{root}/snapshots/link"},
        {"lowerdir": "{root}/snapshots/7/fs"},
        {"lowerdir": "{root}/snapshots/1/fs:"},
        {"upperdir": "{root}2/snapshots/1/fs"},
        {"upperdir": "{root}"},
        {"upperdir": "{root}/snapshots/9/fs,metacopy=on"},
        {"workdir": "{root}/snapshots//9/work"},
        {"redirect_dir": "on"},
    ],
)
def test_what_reaches_out_of_a_proxys_directory(exports: Path, changed: dict[str, str]) -> None:
    """Other places, links on the way, and what is within a snapshot are refused, and options that lead elsewhere."""
    made = {name: value.format(root=exports) for name, value in changed.items()}
    with pytest.raises(PermissionDenied):
        plan.check_foreign(foreign(exports, **made), exports)
