"""The helper's operations between the steps: names, markers and what is refused, without a worker."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.errors import (
    AlreadyExists,
    BulkheadError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from image_svc.unpack import confine, seccomp
from image_svc.unpack.directory import Snapshots, State
from image_svc.unpack.operations import Operations, Request
from image_svc.unpack.protocol import Limits
from image_svc.unpack.worker import Step

COUNTS = {
    "entries": 3, "bytes": 4096, "inodes": 4, "stream_bytes": 1024,
    "whiteouts": 0, "opaque": 0, "implicit": 1, "ignored_xattrs": 0, "diff_id": "sha256:0",
}  # fmt: skip


class Helper:
    """Runs operations with answers given beforehand instead of workers."""

    def __init__(self, root: Path) -> None:
        self.path = root / "snapshots"
        self.snapshots = Snapshots(self.path)
        self.operations = Operations(self.snapshots, Limits(entries=1000, seconds=60))
        self.steps: list[Step] = []

    def run(self, op: str, *answers: dict[str, Any] | BulkheadError, fds: tuple[int, ...] = (), **fields: Any) -> Any:
        """Return what the operation answers."""
        running = self.operations.by_name[op](Request({"op": op, **fields}, list(fds)))
        waiting = list(answers)
        try:
            step = next(running)
            while True:
                self.steps.append(step)
                answer = waiting.pop(0)
                step = running.throw(answer) if isinstance(answer, BulkheadError) else running.send(answer)
        except StopIteration as end:
            assert not waiting
            return end.value

    def layer(self, name: str) -> None:
        """Unpack a layer without opaque directories."""
        self.run("unpack", COUNTS, name=name, fds=(0,))
        (self.path / name / "implicit").write_bytes(b"etc\0")

    def settled(self, name: str) -> None:
        """Make a layer that may be used."""
        self.layer(name)
        self.run("settle", {"settled": 0, "grown": []}, chain=[name])


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[Helper]:
    """Return a helper on an empty root."""
    made = Helper(tmp_path)
    yield made
    os.close(made.snapshots.fd)
    os.close(made.snapshots.trash)
    os.close(made.snapshots.void)


def test_a_layer_is_unpacked_settled_and_complete(helper: Helper) -> None:
    """The states of a layer follow each other, and settling it again finds nothing to do."""
    assert helper.snapshots.state("1") is State.ABSENT
    helper.layer("1")
    assert helper.snapshots.state("1") is State.PENDING
    assert helper.run("settle", {"settled": 2, "grown": []}, chain=["1"]) == {"settled": 2}
    assert helper.snapshots.state("1") is State.COMPLETE
    assert helper.run("settle", chain=["1"]) == {"settled": 0}
    assert helper.run("list") == {"snapshots": [("1", True)]}


def test_a_chain_is_settled_by_one_worker_or_none(helper: Helper) -> None:
    """Layers that describe all their directories need none; of the others one takes the whole chain."""
    helper.run("unpack", COUNTS, name="1", fds=(0,))
    helper.run("unpack", COUNTS, name="2", fds=(0,))
    assert helper.run("settle", chain=["1", "2"]) == {"settled": 0}
    helper.layer("3")
    helper.layer("4")

    assert helper.run("settle", {"settled": 3, "grown": []}, chain=["1", "2", "3", "4"]) == {"settled": 3}
    assert {helper.snapshots.state(name) for name in "1234"} == {State.COMPLETE}


def test_opaque_directories_take_a_second_step_with_another_capability(helper: Helper) -> None:
    """CAP_SYS_ADMIN is in the second step only, which sees the same layer and no stream."""
    helper.run("unpack", {**COUNTS, "opaque": 2}, {"opaque": 2}, name="1", fds=(0,))

    unpack, mark = (step.confinement for step in helper.steps)
    assert (unpack.capabilities, mark.capabilities) == (confine.FILES, confine.OPAQUE)
    assert unpack.root == mark.root
    assert 0 not in unpack.descriptors + mark.descriptors


def test_the_blob_is_decompressed_by_a_process_that_may_do_nothing_else(helper: Helper) -> None:
    """It alone holds the blob; it has no capability, an empty root and no call that takes a path."""
    helper.run("unpack", COUNTS, name="1", fds=(0,))

    [step] = helper.steps
    assert step.beside is not None
    decoding = step.beside.confinement
    assert 0 in decoding.descriptors
    assert not set(decoding.descriptors) & set(step.confinement.descriptors)
    assert (decoding.root, decoding.capabilities) == (helper.snapshots.void, 0)
    assert os.listdir(decoding.root) == []
    assert set(decoding.calls) < set(seccomp.ALLOWED)
    assert not [name for name in decoding.calls if "open" in name or (name.endswith("at") and name != "fstat")]


def test_a_failed_attempt_is_replaced(helper: Helper) -> None:
    """A layer whose worker failed is not complete, and the next attempt starts from an empty directory."""
    with pytest.raises(ResourceExhausted):
        helper.run("unpack", ResourceExhausted("full"), name="1", fds=(0,))
    (helper.path / "1/fs/left").write_text("x")
    assert helper.snapshots.state("1") is State.UNPACKING

    helper.layer("1")

    assert not (helper.path / "1/fs/left").exists()
    assert len(os.listdir(helper.path / "trash")) == 1


def test_a_kill_before_the_tree_is_there_leaves_nothing_complete(helper: Helper) -> None:
    """A directory that a kill left without its tree is being made, and is replaced."""
    os.mkdir(helper.path / "1")
    assert helper.snapshots.state("1") is State.UNPACKING

    helper.settled("1")


def test_a_complete_layer_is_never_replaced(helper: Helper) -> None:
    """Unpacking over a settled layer or a container's snapshot is AlreadyExists."""
    helper.settled("1")
    helper.run("prepare", name="2", chain=["1"])

    for name in ("1", "2"):
        with pytest.raises(AlreadyExists, match=f"snapshot {name}"):
            helper.layer(name)


def test_settling_needs_the_layers_below(helper: Helper) -> None:
    """A layer of the chain that is missing is named, and none is settled."""
    helper.layer("1")

    with pytest.raises(NotFound, match="snapshot 7"):
        helper.run("settle", chain=["1", "7"])
    with pytest.raises(InvalidArgument, match="named twice"):
        helper.run("settle", chain=["1", "1"])
    assert helper.snapshots.state("1") is State.PENDING


def test_prepare_takes_mode_and_owner_of_the_topmost_layer(helper: Helper) -> None:
    """A container's root directory looks as the image's; a second prepare leaves it alone."""
    helper.settled("1")
    helper.settled("2")
    os.chmod(helper.path / "2/fs", 0o1777)

    helper.run("prepare", name="9", chain=["1", "2"])
    (helper.path / "9/fs/written").write_text("x")
    helper.run("prepare", name="9", chain=["1", "2"])

    assert (helper.path / "9/fs").stat().st_mode & 0o7777 == 0o1777
    assert sorted(os.listdir(helper.path / "9")) == ["fs", "work"]
    assert (helper.path / "9/fs/written").exists()


def test_prepare_refuses_layers_that_are_not_ready(helper: Helper) -> None:
    """Neither an unsettled layer nor a missing one carries a container, nor does a layer become one."""
    helper.layer("1")

    with pytest.raises(FailedPrecondition, match="snapshot 1"):
        helper.run("prepare", name="9", chain=["1"])
    with pytest.raises(NotFound, match="snapshot 5"):
        helper.run("prepare", name="9", chain=["5"])
    with pytest.raises(AlreadyExists, match="is a layer"):
        helper.run("prepare", name="1", chain=[])


def test_remove_is_a_rename_and_may_be_repeated(helper: Helper) -> None:
    """A removed snapshot is gone at once, its files wait in the trash, and removing it again succeeds."""
    helper.settled("1")

    assert helper.run("remove", name="1") == {"removed": True}
    assert helper.run("remove", name="1") == {"removed": False}
    assert helper.snapshots.state("1") is State.ABSENT
    assert len(os.listdir(helper.path / "trash")) == 1
    helper.settled("1")


def test_limits_cannot_be_raised(helper: Helper) -> None:
    """A request asks for less than the configuration at most, and for something."""
    helper.run("unpack", COUNTS, name="1", limits={"entries": 10**9, "seconds": 5.0}, fds=(0,))
    assert helper.steps[0].seconds == 5.0

    nan = float("nan")
    for limits in ({"entries": 0}, {"nonsense": 1}, {"entries": "many"}, {"seconds": nan}, {"path_depth": nan}, [1]):
        with pytest.raises((InvalidArgument, ResourceExhausted)):
            helper.run("unpack", name="2", limits=limits, fds=(0,))


def test_unpack_takes_one_descriptor(helper: Helper) -> None:
    """Without a stream, or with two, nothing is made."""
    for fds in ((), (0, 1)):
        with pytest.raises(InvalidArgument, match="descriptors"):
            helper.run("unpack", name="1", fds=fds)
    assert helper.snapshots.state("1") is State.ABSENT


def test_two_helpers_never_share_a_directory(helper: Helper) -> None:
    """A second helper on the same root is refused, naming the directory."""
    with pytest.raises(FailedPrecondition, match="in use by another"):
        Snapshots(helper.path)


def test_usage_believes_numbers_only(helper: Helper) -> None:
    """What a worker counted comes back for the snapshots that were asked for."""
    answer = {"1": [8192, 2], "7": [1, 1]}

    assert helper.run("usage", answer, names=["1", "2"]) == {"usages": {"1": [8192, 2]}}


def test_copies_are_complete_only_when_done(helper: Helper) -> None:
    """A copy that failed is made anew; one that is there is left alone."""
    helper.settled("1")
    with pytest.raises(ResourceExhausted):
        helper.run("copy", ResourceExhausted("full"), name="9", chain=["1"])
    assert helper.snapshots.state("9") is State.UNPACKING

    helper.run("copy", {}, name="9", chain=["1"])
    helper.run("copy", name="9", chain=["1"])

    assert helper.snapshots.state("9") is State.COMPLETE
