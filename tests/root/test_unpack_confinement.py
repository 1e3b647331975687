"""What the helper and its workers can and cannot do, seen from outside and tried from inside."""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead import seqpacket
from bulkhead.errors import (
    Aborted,
    BulkheadError,
    Cancelled,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from image_svc.unpack import confine, linux
from image_svc.unpack.confine import Confinement
from image_svc.unpack.worker import Step, Worker
from support import unpack
from support.images import Layer
from support.unpack import LIMITS, Helper

pytestmark = pytest.mark.root

NOBODY = 65534


@pytest.fixture(scope="module")
def helper() -> Iterator[Helper]:
    """Run one helper for all tests of the module."""
    with unpack.running() as running:
        yield running


@contextlib.contextmanager
def stalled(helper: Helper, name: str, sees: str = "fs") -> Iterator[tuple[int, int, list[BaseException]]]:
    """Unpack a layer that never ends; yield one of its processes, the write end of its stream, and what was raised."""
    before = set(helper.children())
    here, there = os.pipe()
    raised: list[BaseException] = []

    def call() -> None:
        try:
            helper.client.unpack(name, here, LIMITS)
        except BulkheadError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield wait_for_worker(helper, before, sees), there, raised
    finally:
        os.close(there)
        os.close(here)
        thread.join(60)


def wait_for_worker(helper: Helper, before: set[int], sees: str = "fs") -> int:
    """Return the process that waits for its stream: the one that sees a layer's "fs", or the one with the "void"."""
    patience = time.monotonic() + 60
    while True:
        for pid in set(helper.children()) - before:
            with contextlib.suppress(OSError, IndexError):
                waits = Path(f"/proc/{pid}/syscall").read_text().startswith(("0 ", "19 "))  # read, readv
                root = os.path.basename(os.readlink(f"/proc/{pid}/root"))
                if fields(pid).get("Seccomp") == "2" and waits and root == sees:
                    return pid
        assert time.monotonic() < patience
        time.sleep(0.01)


def fields(pid: int) -> dict[str, str]:
    """Return /proc/<pid>/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def alive(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return fields(pid)["State"][0] != "Z"
    except OSError:
        return False


def until(true: Callable[[], object]) -> None:
    """Wait until something holds."""
    patience = time.monotonic() + 30
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_a_worker_has_six_capabilities_one_directory_and_no_network(helper: Helper) -> None:
    """Capabilities, bounding set, filter, root, descriptors and network of a worker, while it waits for its stream."""
    name = str(next(helper.names))
    with stalled(helper, name) as (pid, _, _):
        status = fields(pid)
        wanted = sum(1 << number for number in (0, 1, 3, 4, 27, 31))
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert int(status[kind], 16) == wanted
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
        assert os.readlink(f"/proc/{pid}/root") == os.readlink(f"/proc/{pid}/cwd") == str(helper.tree(name))
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        beside = [str(helper.snapshots / name / kind) for kind in ("implicit", "opaque")]
        assert sorted(path for path in opened if path.startswith("/") and path != "/dev/null") == sorted(
            [*beside, str(helper.tree(name))]
        )
        # Its answer, and the two ends of the memory it shares with the process that decompresses.
        assert sum(path.startswith("pipe:") for path in opened) == 3
        assert not any(path.startswith("socket:") for path in opened)
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        devices = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] in ([], ["lo"])
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0 " in limits


def test_the_process_that_decompresses_has_nothing(helper: Helper) -> None:
    """It holds the blob, the ends of the shared memory and its answer, sees an empty directory, and has no right."""
    with stalled(helper, str(next(helper.names)), "void") as (pid, _, _):
        status = fields(pid)
        assert {status[kind].strip("0") for kind in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {""}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert sorted(path.partition(":")[0] for path in opened) == ["/dev/null"] * 3 + ["pipe"] * 4
        assert os.listdir(f"/proc/{pid}/root") == []


def test_the_helper_keeps_what_its_workers_need_and_no_more(helper: Helper) -> None:
    """The helper lacks every capability over processes, networks, modules and the like."""
    status = fields(helper.process.pid)

    wanted = sum(1 << number for number in (0, 1, 3, 4, 8, 18, 21, 27, 31))
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == wanted
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("sees", ["fs", "void"])
def test_who_answers_calls_comes_before_who_unpacks(helper: Helper, sees: str) -> None:
    """Both processes of an unpacking give way to the services, which start with the helper's own niceness."""
    with stalled(helper, str(next(helper.names)), sees) as (pid, _, _):
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(os.getpriority(os.PRIO_PROCESS, helper.process.pid) + 10, 19)


def test_killing_the_helper_kills_its_workers_and_a_new_one_goes_on() -> None:
    """No worker survives a kill -9 of the helper; the layer is unfinished and can be unpacked anew."""
    with tempfile.TemporaryDirectory(prefix="bhkill") as scratch:
        helper = unpack.start(Path(scratch))
        with stalled(helper, "1") as (pid, _, raised):
            helper.process.kill()
            helper.process.wait(30)
            patience = time.monotonic() + 60
            while alive(pid):
                assert time.monotonic() < patience
                time.sleep(0.01)
        assert isinstance(raised[0], Unavailable)
        with unpack.running(Path(scratch)) as again:
            assert again.client.list() == [("1", False)]
            again.unpack(Layer().file("a", "x").tar(), "1")


@pytest.mark.parametrize("sees", ["fs", "void"])
def test_killing_a_worker_fails_its_layer_only(helper: Helper, sees: str) -> None:
    """Whichever of a layer's two processes is killed, it is Aborted, the helper serves on, and it can be tried anew."""
    name = str(next(helper.names))
    with stalled(helper, name, sees) as (pid, _, raised):
        os.kill(pid, signal.SIGKILL)
        helper.unpack(Layer().file("a", "x").tar())
        until(lambda: raised)
    assert isinstance(raised[0], Aborted)
    assert "was killed" in str(raised[0])
    helper.unpack(Layer().file("a", "x").tar(), name)


def test_hanging_up_kills_the_worker(helper: Helper) -> None:
    """A client that goes away leaves no worker behind."""
    name = str(next(helper.names))
    here, there = os.pipe()
    before = set(helper.children())
    socket_path = str(helper.directory / "state/io.bulkhead/image-svc-unpack/unpack.sock")
    with seqpacket.connect(socket_path) as connection:
        seqpacket.send(connection, {"op": "unpack", "name": name}, [here])
        pid = wait_for_worker(helper, before)
    patience = time.monotonic() + 60
    while pid in helper.children():
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.close(here)
    os.close(there)
    helper.unpack(Layer().file("a", "x").tar(), name)


def test_one_snapshot_is_worked_on_once_at_a_time(helper: Helper) -> None:
    """A second operation on a snapshot is Aborted, and removing it stops the first."""
    name = str(next(helper.names))
    with stalled(helper, name) as (_, _, raised):
        with pytest.raises(Aborted):
            helper.unpack(Layer().tar(), name)
        helper.client.remove(name)
        until(lambda: raised)
    assert isinstance(raised[0], Cancelled)
    assert name not in [found for found, _ in helper.client.list()]


def test_only_image_svc_is_served(helper: Helper) -> None:
    """The socket is its user's alone, and a connection of anybody else that gets through is refused."""
    path = helper.directory / "state/io.bulkhead/image-svc-unpack/unpack.sock"
    status = path.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (NOBODY, 0o600)
    assert (helper.snapshots.stat().st_uid, helper.snapshots.stat().st_mode & 0o777) == (0, 0o700)

    path.chmod(0o666)
    helper.directory.chmod(0o755)
    script = (
        "import os, sys; os.setgroups([]); os.setgid(1); os.setuid(int(sys.argv[2]))\n"
        "from pathlib import Path; from image_svc.unpack.client import UnpackClient\n"
        "try: UnpackClient(Path(sys.argv[1])).ping()\n"
        "except Exception as error: print(type(error).__name__)\n"
        "else: print('served')"
    )
    answers = [
        subprocess.run([sys.executable, "-c", script, path, str(uid)], capture_output=True, text=True, timeout=60)
        for uid in (1, NOBODY)
    ]
    path.chmod(0o600)

    assert [answer.stdout.strip() for answer in answers] == [PermissionDenied.__name__, "served"], answers


@pytest.mark.parametrize(
    "message",
    [{}, {"op": "none"}, {"op": "unpack"}, {"op": "usage"}, {"op": "list", "after": "x"}, {"op": "copy", "name": "1"}],
)
def test_malformed_orders_are_refused(helper: Helper, message: dict[str, Any]) -> None:
    """An order that lacks something is InvalidArgument and the helper serves on, also over that connection."""
    socket_path = str(helper.directory / "state/io.bulkhead/image-svc-unpack/unpack.sock")
    with seqpacket.connect(socket_path) as connection:
        for _ in range(2):
            seqpacket.send(connection, message)
            answer, _ = seqpacket.receive(connection)
            assert answer is not None
            assert answer["error"]["code"] == InvalidArgument.code
        connection.send(b"not JSON")
        assert seqpacket.receive(connection)[0] is None
    helper.client.ping()


def test_many_layers_at_once(helper: Helper) -> None:
    """Sixteen layers unpack side by side, each into its own directory."""
    results: list[str] = []

    def one(number: int) -> None:
        layer = Layer()
        for index in range(200):
            layer.file(f"d/{index}", f"{number}")
        results.append(helper.unpack(layer.tar(), str(50_000 + number))[0])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(results) == 16
    assert {(helper.tree(name) / "d/7").read_text() for name in results} == {str(number) for number in range(16)}


def inside(work: Callable[[], Any], capabilities: int = confine.FILES, **confinement: Any) -> Any:
    """Run something in a confined worker of this process and return what it returned."""
    with tempfile.TemporaryDirectory(prefix="bhcell") as scratch:
        root = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        try:
            worker = Worker(Step(Confinement(root, capabilities, **confinement), lambda: {"value": work()}, 60))
            assert worker.ended(90)
            return worker.collect()["value"]
        finally:
            os.close(root)


def call(number: int, *arguments: int) -> Callable[[], int]:
    """Return a raw system call."""
    return lambda: int(linux.LIBC.syscall(number, *arguments))


ATTACKS: dict[str, Callable[[], Any]] = {
    "socket": lambda: socket.socket(socket.AF_INET),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "socket pair": socket.socketpair,
    "fork": os.fork,
    "execve": lambda: os.execv("/bin/sh", ["sh"]),
    "kill": lambda: os.kill(1, 0),
    "mount": lambda: linux.LIBC.mount(b"none", b"/", b"tmpfs", 0, None),
    "unshare": lambda: linux.unshare(linux.CLONE_NEWNET),
    "chroot": lambda: os.chroot("/"),
    "setuid": lambda: os.setuid(0),
    "prctl": lambda: linux.prctl(linux.PR_SET_DUMPABLE, 1),
    "capset": lambda: linux.capset(confine.HELPER),
    "executable memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "ptrace": call(101, 16, 1),
    "bpf": call(321, 0),
    "io_uring": call(425, 1),
    "clone3": call(435, 0),
    "open_by_handle_at": call(304, 0, 0, 0),
    "keyctl": call(250, 0),
    "init_module": call(175, 0),
    "32-bit call by x32": call(0x40000000 | 20),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86_64's")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_kill_the_worker(attack: str) -> None:
    """A system call that is not for files ends the worker on the spot."""
    with pytest.raises(Internal, match="system call filter"):
        inside(ATTACKS[attack])


def test_a_worker_sees_its_own_directory_only() -> None:
    """No path, `..` chain or descriptor shows anything of the host."""

    def look() -> list[Any]:
        held = []
        for fd in range(3, 1024):
            with contextlib.suppress(OSError):
                held.append(os.fstat(fd).st_mode & 0o170000)
        return [os.listdir("/"), os.listdir("../../../../.."), os.listdir("."), held]

    listed, above, here, held = inside(look)

    assert listed == above == here == []
    assert held == [0o010000]  # the pipe for its answer
    with pytest.raises(Internal, match="FileNotFoundError"):
        inside(lambda: os.open("/proc/self/status", os.O_RDONLY))


def test_a_worker_can_do_its_work() -> None:
    """Devices, ownership, set-id bits and capabilities of files can be made; an attribute of overlayfs's cannot."""

    def make() -> list[int]:
        os.mknod("null", 0o020666, os.makedev(1, 3))
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600))
        os.chown("f", 1000, 1000, dir_fd=os.open(".", os.O_RDONLY), follow_symlinks=False)
        fd = os.open("f", os.O_RDWR)
        os.fchmod(fd, 0o6755)
        return [os.fstat(fd).st_mode, os.fstat(fd).st_uid]

    def mark() -> None:
        os.setxattr(os.open("/", os.O_RDONLY), "trusted.overlay.opaque", b"y")

    assert inside(make) == [0o106755, 1000]
    with pytest.raises(Internal, match="PermissionError"):
        inside(mark)
    inside(mark, confine.OPAQUE)


def test_memory_and_time_are_bounded() -> None:
    """A worker that wants too much memory says so, one that computes for ever is ended."""
    with pytest.raises(ResourceExhausted, match="256 MiB of memory"):
        inside(lambda: len(bytearray(512 << 20)), memory=256 << 20)

    def spin() -> None:
        while True:
            pass

    with pytest.raises(ResourceExhausted, match="processor time"):
        inside(spin, seconds=0.1)


def test_an_answer_that_is_none_is_an_error() -> None:
    """What a worker that was taken over might write instead of an answer is never believed."""
    for bad in (b"", b"[]", b"{}", b'{"ok": 1}', b"\xff", b'{"error": {"code": "x"}}', b"[" * 50_000):

        def write(bad: bytes = bad) -> None:
            for fd in range(3, 1024):
                with contextlib.suppress(OSError):
                    os.write(fd, bad)
            os._exit(0)

        with pytest.raises(Internal, match="no answer"):
            inside(write)


def test_a_second_helper_is_refused(helper: Helper) -> None:
    """Two helpers never work on one root; the second says why and ends with 1."""
    second = subprocess.run(
        [sys.executable, "-m", "image_svc.unpack", "--config", helper.directory / "config.toml"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert second.returncode == 1
    assert "in use by another unpack helper" in second.stderr
    assert helper.client.usages(["999999999"]) == {}


def test_an_unknown_user_is_named() -> None:
    """Without image-svc's user the helper does not start, and says whose user is missing."""
    with tempfile.TemporaryDirectory(prefix="bhuser") as scratch:
        file = Path(scratch, "c.toml")
        file.write_text(
            f'version = 3\nroot = "{scratch}/r"\nstate = "{scratch}/s"\n[bulkhead.users]\nimage-svc = "no-1"\n'
        )
        ended = subprocess.run(
            [sys.executable, "-m", "image_svc.unpack", "--config", file], capture_output=True, text=True, timeout=60
        )

    assert ended.returncode == 1
    assert "user 'no-1' of image-svc does not exist" in ended.stderr
