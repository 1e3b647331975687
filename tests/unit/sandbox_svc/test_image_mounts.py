"""Images as volumes: read-only plans, paths inside them, and what is noted before they are made."""

from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import image_mounts
from sandbox_svc.store import messages
from sandbox_svc.store.records import ContainerRecord

OPTIONS = ["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs"]


def record(*mounts: cri.Mount) -> ContainerRecord:
    return ContainerRecord(id="c" * 64, sandbox_id="p" * 64, config=cri.ContainerConfig(mounts=mounts), created_at=1)


def image(name: str = "img:1") -> cri.Mount:
    return cri.Mount(container_path="/x", image=cri.ImageSpec(image=name), readonly=True)


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        (("overlay", "overlay", [*OPTIONS, "lowerdir=/l2:/l1"]), ("overlay", ["index=off", "lowerdir=/l2:/l1", "ro"])),
        (("overlay", "overlay", [*OPTIONS, "lowerdir=/l1"]), ("bind", ["rbind", "ro"])),
        (("bind", "/s/3/fs", ["rw", "rbind"]), ("bind", ["rbind", "ro"])),
    ],
)
def test_plans_become_read_only(mount: tuple[str, str, list[str]], expected: tuple[str, list[str]]) -> None:
    """The writable directory is left out; a single layer is bound, for an overlay needs two."""
    kind, source, options = mount
    [found] = image_mounts.read_only([images_pb2.Mount(type=kind, source=source, options=options)])
    assert (found.type, list(found.options)) == expected
    assert found.source == {"lowerdir=/l1": "/l1"}.get(options[-1], source)


def test_a_plan_of_several_mounts_is_refused() -> None:
    """What cannot be made read-only by dropping options is not mounted."""
    with pytest.raises(FailedPrecondition, match="one mount"):
        image_mounts.read_only([])


def test_what_is_made_is_noted_first(tmp_path: Path) -> None:
    """Each image has a snapshot and a mount, undone before the directory that holds them."""
    found = record(cri.Mount(container_path="/y", host_path="/y"), image())
    assert [entry.kind for entry in image_mounts.intents(found, tmp_path)] == ["directory", "snapshot", "mount"]
    assert image_mounts.intents(record(), tmp_path) == []
    assert found.image_keys() == ["c" * 64 + "-image-1"]


def test_status_says_which_image_a_volume_is() -> None:
    """Only mounts that are images have an image_ref; the record of an older release knows none."""
    plain = cri.Mount(container_path="/y", host_path="/y")
    old = record(plain, image())
    assert [mount.image.image_ref for mount in messages.mounts(old)] == ["", ""]
    shown = messages.mounts(replace(old, volume_images=("sha256:1",)))
    assert [mount.image.image_ref for mount in shown] == ["", "sha256:1"]
    assert [mount.container_path for mount in shown] == [mount.container_path for mount in old.config.mounts]
    assert not old.config.mounts[1].image.image_ref


def test_errors_begin_with_the_word_for_the_kubelet(tmp_path: Path) -> None:
    """An image that is not there is NotFound, with the mount named."""

    def prepare(reference: str, key: str) -> list[images_pb2.Mount]:
        raise NotFound(f"{reference} is not here")

    with pytest.raises(NotFound, match=r"^ImageVolumeMountFailed: mounts\[0\]\.image img:1: img:1 is not here$"):
        image_mounts.mount_all(record(image()), tmp_path, prepare)


def test_sub_paths_stay_inside(tmp_path: Path) -> None:
    """A directory of the image is found through its own symlinks; what leads elsewhere or is no directory is not."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/a/b")
    assert image_mounts.inside(tmp_path, "") == str(tmp_path)
    assert image_mounts.inside(tmp_path, "a/b") == image_mounts.inside(tmp_path, "link") == str(tmp_path / "a" / "b")
    for path in ("/a", "../x", "a/../../x"):
        with pytest.raises(InvalidArgument, match="image_sub_path"):
            image_mounts.inside(tmp_path, path)
    for path in ("none", "file"):
        with pytest.raises(FailedPrecondition, match="image_sub_path"):
            image_mounts.inside(tmp_path, path)
