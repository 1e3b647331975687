"""Parts of a checkpoint: what a rootfs's changes look like, how a status is written, what stands in the way."""

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bulkhead.config.model import RuntimeHandler
from bulkhead.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument
from bulkhead.proto.containerd import task_pb2
from bulkhead.proto.containerd.runc_options_pb2 import CheckpointOptions, Options
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.checkpoint import archive, criu, go_json
from sandbox_svc.checkpoint.rootfs_diff import MAX_DEPTH, RootfsDiff
from sandbox_svc.checkpoint.under_way import UnderWay
from sandbox_svc.netns import IdMapping
from sandbox_svc.oci.model import RuntimeFacts
from sandbox_svc.rpc import checkpoint_container, stop_container
from sandbox_svc.runtimes import Resolved
from sandbox_svc.shim import checkpoint as shim_checkpoint
from sandbox_svc.store.records import Exit


def diff(upper: Path, **changes: Any) -> dict[str, tarfile.TarInfo]:
    target = io.BytesIO()
    RootfsDiff(upper, **changes).write(target)
    target.seek(0)
    with tarfile.open(fileobj=target) as found:
        return {entry.name: entry for entry in found.getmembers()}


def test_files_of_every_kind(tmp_path: Path) -> None:
    """Files, links, FIFOs, modes and times come as they are; a hard link is one file; a socket is left out."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 10_000)
    os.link(tmp_path / "a" / "file", tmp_path / "b")
    os.chmod(tmp_path / "b", 0o4755)
    os.utime(tmp_path / "b", (5, 7))
    (tmp_path / "link").symlink_to("/etc/shadow")
    (tmp_path / "dirlink").symlink_to("/etc")
    os.mkfifo(tmp_path / "fifo")
    entries = diff(tmp_path)
    assert entries.keys() == {"a", "a/file", "b", "link", "dirlink", "fifo"}
    assert (entries["a"].isdir(), entries["fifo"].isfifo()) == (True, True)
    assert (entries["link"].linkname, entries["dirlink"].issym()) == ("/etc/shadow", True)
    assert (entries["b"].mode, entries["b"].mtime) == (0o4755, 7)
    assert (entries["a/file"].islnk(), entries["b"].size) == (True, 10_000)


def test_owners_are_those_that_the_container_knows(tmp_path: Path) -> None:
    """In a pod with a user namespace, the ids of the node are mapped back; one that is not mapped stays."""
    (tmp_path / "f").touch()
    owner = os.stat(tmp_path / "f")
    entries = diff(tmp_path, uids=[IdMapping(7, owner.st_uid, 1)], gids=[IdMapping(0, owner.st_gid + 1, 5)])
    assert (entries["f"].uid, entries["f"].gid) == (7, owner.st_gid)


def test_a_directory_without_end(tmp_path: Path) -> None:
    """A container that nests directories without end costs itself the checkpoint, and no descriptors beyond a bound."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(MAX_DEPTH + 2):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(FailedPrecondition, match="levels"):
        diff(tmp_path)


def test_time_is_looked_at_between_files(tmp_path: Path) -> None:
    """A deadline ends the walk."""

    def up() -> None:
        raise DeadlineExceeded("up")

    (tmp_path / "f").touch()
    with pytest.raises(DeadlineExceeded):
        diff(tmp_path, tick=up)


def test_a_status_as_go_writes_it() -> None:
    """Names are the proto's, 64-bit numbers and enums are numbers, and what is not set is left out."""
    status = cri.ContainerStatus(
        id="c",
        state=cri.CONTAINER_RUNNING,
        created_at=1 << 60,
        labels={"a": "b"},
        mounts=[cri.Mount(container_path="/x", propagation=cri.PROPAGATION_BIDIRECTIONAL)],
        metadata=cri.ContainerMetadata(name="n"),
    )
    assert go_json.plain(status) == {
        "id": "c",
        "metadata": {"name": "n"},
        "state": 1,
        "created_at": 1 << 60,
        "labels": {"a": "b"},
        "mounts": [{"container_path": "/x", "propagation": 2}],
    }
    assert go_json.timestamp(0) == "0001-01-01T00:00:00Z"
    assert go_json.timestamp(1_000_000_005) == "1970-01-01T00:00:01.000000005Z"


def test_the_archive(tmp_path: Path) -> None:
    """The archive holds the directory and the log, is root's alone, and takes the place of what was there."""
    work, log, location = tmp_path / "work", tmp_path / "log", tmp_path / "out.tar"
    (work / "checkpoint").mkdir(parents=True)
    (work / "checkpoint" / "pages-1.img").write_bytes(b"memory")
    (work / "config.dump").write_text("{}")
    log.write_text("a line\n")
    location.write_text("before")
    archive.save_deleted(work, ["etc/x"])
    archive.write(location, work, str(log), lambda: None)
    with tarfile.open(location) as found:
        assert found.getnames() == [
            "checkpoint", "checkpoint/pages-1.img", "config.dump", "deleted.files", "container.log"
        ]  # fmt: skip
        assert {(entry.uid, entry.mode & 0o077) for entry in found.getmembers()} == {(0, 0)}
        assert json.load(found.extractfile("deleted.files")) == ["/etc/x"]  # type: ignore[arg-type]
    assert location.stat().st_mode & 0o777 == 0o600


def test_an_archive_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """When the time is up, or the log is a symlink, the old file stays and no part of a new one."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "f").touch()
    location = tmp_path / "out.tar"
    location.write_text("before")

    def up() -> None:
        raise DeadlineExceeded("up")

    with pytest.raises(DeadlineExceeded):
        archive.write(location, tmp_path / "work", "", up)
    (tmp_path / "log").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        archive.write(location, tmp_path / "work", str(tmp_path / "log"), lambda: None)
    assert location.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["log", "out.tar", "work"]


def test_two_archives_for_one_place(tmp_path: Path) -> None:
    """Two checkpoints to the same location at once do not write into one file: each is whole, and the later stays."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.dump").write_text(name)
    location = tmp_path / f"{'x' * 251}.tar"  # as long as a name may be
    meanwhile = iter([lambda: archive.write(location, tmp_path / "two", "", lambda: None)])
    archive.write(location, tmp_path / "one", "", lambda: next(meanwhile, lambda: None)())
    with tarfile.open(location) as found:
        assert found.extractfile("config.dump").read() == b"one"  # type: ignore[union-attr]
    assert sorted(os.listdir(tmp_path)) == ["one", "two", location.name]


def resolved(name: str, binary: str, **changes: Any) -> Resolved:
    return Resolved(name, RuntimeHandler(**changes), binary, RuntimeFacts(name=name), "")


def program(place: Path, name: str, output: str) -> str:
    place.mkdir(exist_ok=True)
    (place / name).write_text(output)
    (place / name).chmod(0o755)
    return str(place / name)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CRIU, with an old one, with a crun that has none, and by configuration, the call says what is missing."""
    said = {"criu": b"Version: 3.15\n", "crun": b"crun version 1.8.1\n+SYSTEMD +SECCOMP\n"}
    monkeypatch.setattr("bulkhead.command.run", lambda args, timeout: SimpleNamespace(stdout=said[Path(args[0]).name]))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    runc = resolved("runc", "/usr/sbin/runc")
    with pytest.raises(FailedPrecondition, match="enable_criu = false"):
        criu.require(runc, enabled=False)
    with pytest.raises(FailedPrecondition, match=f"program criu, which is not in {tmp_path}/bin"):
        criu.require(runc, enabled=True)
    program(tmp_path / "bin", "criu", "")
    with pytest.raises(FailedPrecondition, match=r"criu has version 3\.15, checkpoints need 3\.16 or later"):
        criu.require(runc, enabled=True)
    said["criu"] = b"Version: 3.17.1\n"
    os.utime(tmp_path / "bin" / "criu", ns=(1, 1))
    criu.require(runc, enabled=True)
    crun = resolved("crun", program(tmp_path / "bin", "crun", ""))
    with pytest.raises(FailedPrecondition, match=r"crun was built without CRIU .*BinaryName = runc"):
        criu.require(crun, enabled=True)
    said["crun"] += b"+CRIU +YAJL\n"
    os.utime(tmp_path / "bin" / "crun", ns=(1, 1))
    criu.require(crun, enabled=True)
    monkeypatch.setenv("PATH", "")
    criu.require(resolved("kata", "", runtime_type="io.containerd.kata.v2"), enabled=True)


def test_one_checkpoint_of_a_container_at_a_time() -> None:
    """A second checkpoint is refused while there is one, and allowed after it."""
    under_way = UnderWay()
    for _ in range(2):
        with under_way.of("c"):
            assert "c" in under_way
            with pytest.raises(FailedPrecondition, match="another checkpoint"), under_way.of("c"):
                raise AssertionError
        assert "c" not in under_way


def test_a_probe_waits_for_the_thaw() -> None:
    """Who wants to run something in a container waits while it is frozen, and no longer than he has time."""
    under_way, waited = UnderWay(), threading.Event()

    def wait() -> None:
        under_way.wait_thawed("c", 30)
        waited.set()

    with under_way.frozen("c"):
        under_way.wait_thawed("d", 30)
        under_way.wait_thawed("c", 0.01)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert not waited.wait(0.05)
    assert waited.wait(5)
    waiter.join()


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_stop_is_stronger_than_a_checkpoint() -> None:
    """A stop has the container thawed, as often as it takes, and the checkpoint says why it was not made."""
    under_way, thawed = UnderWay(), threading.Semaphore(0)
    under_way.give_way("c", lambda: pytest.fail("nothing is frozen"))

    def thaw() -> None:
        thawed.release()
        raise FailedPrecondition("not frozen yet")

    with under_way.of("c"):
        under_way.check("c")
        with under_way.frozen("c"):
            stop = in_background(lambda: under_way.give_way("c", thaw))
            assert thawed.acquire(timeout=60)
            assert thawed.acquire(timeout=60)
            assert stop.is_alive()
            with pytest.raises(FailedPrecondition, match="container c is being stopped"):
                under_way.check("c")
        stop.join(60)
        assert not stop.is_alive()
    with under_way.of("c"):
        under_way.check("c")


def test_a_checkpoint_that_has_all_it_needs_is_finished() -> None:
    """Once the container is thawed a stop has nothing to wait for and ends nothing; a removal does."""
    under_way = UnderWay()
    with under_way.of("c"):
        with under_way.frozen("c"):
            pass
        under_way.give_way("c", lambda: pytest.fail("nothing is frozen"))
        under_way.check("c")
        removal = in_background(lambda: under_way.end("c"))
        for _ in range(3000):
            removal.join(0.02)
            try:
                under_way.check("c")
            except FailedPrecondition:
                break
        with pytest.raises(FailedPrecondition, match="being stopped"):
            under_way.check("c")
        assert removal.is_alive()
    removal.join(60)
    assert not removal.is_alive()
    under_way.end("c")


def test_a_checkpoint_that_does_not_end_keeps_no_stop_for_ever() -> None:
    """A shim that cannot thaw costs a stop its patience, no more."""
    under_way = UnderWay()
    with under_way.of("c"), under_way.frozen("c"):
        under_way.give_way("c", lambda: None, patience=0.01)
        under_way.end("c", patience=0.01)


def test_a_stop_that_was_there_first(world: Any) -> None:
    """No checkpoint begins, and so nothing is frozen, while a container has time to obey its stop signal."""
    world.container.stoppers = 1
    with pytest.raises(FailedPrecondition, match="is being stopped"):
        checkpoint_container._not_stopping(world.container)
    world.container.stoppers = 0
    checkpoint_container._not_stopping(world.container)


def test_a_stop_thaws_before_it_signals(world: Any) -> None:
    """A frozen container is thawed by its shim first, so that it has its whole grace to heed the signal."""
    world.link.on_kill = lambda ident, number: world.container.finished(Exit(0, 1))
    entered, leave = threading.Event(), threading.Event()

    def checkpoint() -> None:
        with world.node.checkpoints.of("c" * 64), world.node.checkpoints.frozen("c" * 64):
            entered.set()
            leave.wait(30)

    def resume(ident: str, timeout: float) -> None:
        world.link.calls.append(("resume", ident[:1]))
        leave.set()

    world.link.resume = resume
    made = in_background(checkpoint)
    assert entered.wait(30)
    stop_container.stop(world.node, world.container, 30)
    made.join()
    assert world.link.calls == [("resume", "c"), ("kill", "c", 15)]


def test_time_is_looked_at_within_a_file(tmp_path: Path) -> None:
    """A file of many MiB does not keep the container frozen beyond the deadline."""
    with (tmp_path / "f").open("wb") as file:
        file.truncate(8 << 20)
    ticks: list[None] = []
    diff(tmp_path, tick=lambda: ticks.append(None))
    assert len(ticks) >= 9


class FakeLink:
    PAUSED = 3

    def __init__(self, status: int) -> None:
        self.status, self.resumed = status, list[str]()

    def state(self, ident: str) -> Any:
        return SimpleNamespace(status=self.status)

    def resume(self, ident: str) -> None:
        self.resumed.append(ident)


@pytest.mark.parametrize(("status", "busy", "resumed"), [(3, False, ["c"]), (3, True, []), (2, False, [])])
def test_only_what_was_left_frozen_is_thawed(status: int, *, busy: bool, resumed: list[str]) -> None:
    """A frozen container that is not being checkpointed is thawed; others are left alone."""
    node: Any = SimpleNamespace(checkpoints={"c"} if busy else set())
    link: Any = FakeLink(status)
    checkpoint_container.thaw(node, "c", link)
    assert link.resumed == resumed


def test_the_callers_time_and_presence() -> None:
    """The shortest limit counts, and a caller that has gone ends the work."""
    alive = [True]
    context: Any = SimpleNamespace(time_remaining=lambda: 0.0, is_active=lambda: alive[0])
    request = cri.CheckpointContainerRequest(timeout=5)
    with pytest.raises(DeadlineExceeded, match="0 s"):
        checkpoint_container._Deadline(request, context, lambda: None).left()
    context.time_remaining = lambda: None
    deadline = checkpoint_container._Deadline(request, context, lambda: None)
    assert 4 < deadline.left() <= 5
    alive[0] = False
    with pytest.raises(Cancelled):
        deadline.check()


def test_options_of_the_shim() -> None:
    """Options of another type, and paths that are not absolute, are refused by name."""
    request = task_pb2.CheckpointTaskRequest(path="relative")
    with pytest.raises(InvalidArgument, match="path 'relative'"):
        shim_checkpoint._read(request)
    request.path = "/images"
    for options, match in ((CheckpointOptions(work_path="x"), "work_path 'x'"), (Options(), "runc.v1.Options")):
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
        with pytest.raises(InvalidArgument, match=match):
            shim_checkpoint._read(request)


def test_errors_of_a_log(tmp_path: Path) -> None:
    """What is passed on of CRIU's log are its first errors, found at its end, and no more than fits a message."""
    log = tmp_path / "dump.log"
    assert shim_checkpoint._errors(str(log)) == []
    lines = ["(00.000) fine\n"] * 20_000 + [f"(00.{n:03}) Error (criu/x.c:{n}): {'y' * 400}\n" for n in range(5)]
    log.write_text("".join(lines))
    found = shim_checkpoint._errors(str(log))
    assert [text[:13] for text in found] == ["(criu/x.c:0):", "(criu/x.c:1):", "(criu/x.c:2):"]
    assert all(len(text) == 300 for text in found)
