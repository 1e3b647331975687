"""The shim alone, forked by its zygote, with real runc and crun: containers, logs, exec, exits."""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from bulkhead.errors import AlreadyExists, BulkheadError, FailedPrecondition, NotFound
from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import cgroups_v1_pb2, cgroups_v2_pb2, task_types_pb2
from bulkhead.proto.containerd import task_pb2 as pb
from bulkhead.proto.containerd.types_pb2 import Mount
from support.shim_pod import Pod, Zygote, until

pytestmark = pytest.mark.root

numbers = itertools.count()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


@pytest.fixture(params=["runc", "crun"])
def pod(request: pytest.FixtureRequest, zygote: Zygote) -> Iterator[Pod]:
    made = Pod(zygote, f"pod{next(numbers)}", request.param).fork()
    yield made
    made.close()


def test_a_whole_life(pod: Pod) -> None:
    """Created, running, stopped; exit code and log are right, the exit is on disk until Delete, then nothing is."""
    pid = pod.create("c", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert pod.state("c").status == task_types_pb2.CREATED
    pod.start("c")
    assert pod.wait("c") == 7
    state = pod.state("c")
    assert (state.status, state.exit_status, state.pid) == (task_types_pb2.STOPPED, 7, pid)
    assert sorted(pod.lines("c")) == [("stderr", "F", "err"), ("stdout", "F", "out")]
    kept = json.loads((pod.base / "c" / "exit.json").read_text())
    assert (kept["status"], kept["pid"], kept["oom"]) == (7, pid, False)
    (left,) = pod.shim("Exits", shim_pb2.ExitsRequest(), shim_pb2.ExitsResponse).exits
    assert (left.container_id, left.status, left.pid, left.exited_at) == ("c", 7, pid, kept["exited_at"])

    assert pod.delete("c").exit_status == 7

    assert sorted(os.listdir(pod.base / "c")) == ["config.json", "rootfs"]
    with pytest.raises(NotFound):
        pod.state("c")


def test_what_cannot_be_done_now_is_refused(pod: Pod) -> None:
    """A second Create, Delete of a running container, Kill of a dead one, ReopenLog after the exit: codes matter."""
    pod.run("c", "sleep", "100")
    with pytest.raises(AlreadyExists):
        pod.task("Create", pb.CreateTaskRequest(id="c", bundle=str(pod.base / "c")), pb.CreateTaskResponse)
    with pytest.raises(FailedPrecondition):
        pod.task("Delete", pb.DeleteRequest(id="c"), pb.DeleteResponse)
    with pytest.raises(FailedPrecondition):
        pod.start("c")
    pod.kill("c")
    pod.wait("c")
    with pytest.raises(NotFound, match="process already finished"):
        pod.kill("c")
    pod.log("c").unlink()
    with pytest.raises(FailedPrecondition):
        pod.shim("ReopenLog", shim_pb2.ReopenLogRequest(container_id="c"), shim_pb2.ReopenLogResponse)

    assert not pod.log("c").exists()


def test_the_runtimes_refusal_reaches_the_caller(pod: Pod) -> None:
    """A container that cannot be made fails with the runtime's words and leaves no mount and no state."""
    with pytest.raises(BulkheadError, match="nonesuch"):
        pod.create("bad", "/nonesuch")
    with pytest.raises(NotFound):
        pod.state("bad")

    assert not list((pod.zygote.directory / "run" / "k8s.io").glob("bad"))


def test_rootfs_mounts_are_made_and_undone(pod: Pod) -> None:
    """The mounts of Create stand at bundle/rootfs, here an overlay over the real root, until Delete."""
    lower = pod.bundle("lower", "true") / "rootfs"
    for name in ("upper", "work"):
        (pod.base / name).mkdir()
    options = [f"lowerdir={lower}", f"upperdir={pod.base}/upper", f"workdir={pod.base}/work"]
    mount = Mount(type="overlay", source="overlay", options=options)

    def unpack_nothing(spec: dict[str, Any]) -> None:
        for path in sorted((pod.base / "c" / "rootfs").rglob("*"), reverse=True):
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()

    pod.run("c", "sh", "-c", "echo written > /file", rootfs=[mount], change=unpack_nothing)
    assert pod.wait("c") == 0
    assert str(pod.base / "c" / "rootfs") in Path("/proc/self/mountinfo").read_text()
    pod.delete("c")

    assert (pod.base / "upper" / "file").read_text() == "written\n"
    assert str(pod.base / "c" / "rootfs") not in Path("/proc/self/mountinfo").read_text()


def test_log_lines_are_split_and_reopened(pod: Pod) -> None:
    """A long line is cut into pieces, an unfinished one tagged P, and after a rename the new file gets the rest."""
    pod.run(
        "c",
        "sh",
        "-c",
        "echo 0123456789abc; read x < /dev/null; while [ ! -e /go ]; do sleep 0.02; done; printf end",
        line_size=5,
    )
    until(lambda: len(pod.lines("c")) == 3)
    pod.log("c").rename(pod.base / "rotated")
    pod.shim("ReopenLog", shim_pb2.ReopenLogRequest(container_id="c"), shim_pb2.ReopenLogResponse)
    pod.exec_sync("c", "touch", "/go")
    pod.wait("c")

    assert pod.lines("c") == [("stdout", "P", "end")]
    assert pod.log("c").stat().st_mode & 0o777 == 0o640
    rotated = [line.split(" ", 3)[2:] for line in (pod.base / "rotated").read_text().splitlines()]
    assert rotated == [["P", "01234"], ["P", "56789"], ["F", "abc"]]


def test_a_flood_of_output_is_whole_and_delays_nobody(pod: Pod) -> None:
    """A hundred thousand lines arrive in order, and State is answered meanwhile."""
    pod.run("c", "seq", "100000")
    slowest, first = 0.0, time.monotonic()
    while pod.state("c").status != task_types_pb2.STOPPED:
        began = time.monotonic()
        pod.state("c")
        slowest = max(slowest, time.monotonic() - began)
    whole = time.monotonic() - first
    pod.wait("c")

    assert [text for _, _, text in pod.lines("c")] == [str(n) for n in range(1, 100001)]
    # On a slow machine both take their time; who answers behind the flood alone takes as long as that.
    assert slowest < max(1.0, whole / 3)


def test_exec_sync(pod: Pod) -> None:
    """Output and exit code come back; long output comes by descriptor, cut at the limit."""
    pod.run("c", "sleep", "100")
    short = pod.exec_sync("c", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (short.exit_code, short.stdout, short.stderr, short.truncated) == (3, b"out\n", b"err\n", False)

    fds: list[int] = []
    script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero | tr '\\0' e >&2"
    long = pod.exec_sync("c", "sh", "-c", script, fds=fds, output_limit=400_000)

    assert (long.stdout_length, long.stderr_length, long.truncated) == (300_000, 100_000, True)
    assert os.pread(fds[0], 500_000, 0) == bytes(300_000) + b"e" * 100_000
    os.close(fds[0])


def test_exec_sync_ends_in_time(pod: Pod) -> None:
    """At the deadline the whole group dies; a child left behind holds the answer no longer than the drain limit."""
    pod.run("c", "sleep", "100")
    # The time counts from the request, and a busy machine may need more of it before the program says anything.
    for limit in (300, 2_000, 15_000):
        began = time.monotonic()
        late = pod.exec_sync("c", "sh", "-c", "echo first; sleep 60 & sleep 60", timeout_ms=limit)
        assert late.timed_out
        assert time.monotonic() - began < 40
        if late.stdout:
            break
    assert late.stdout == b"first\n"
    held = pod.exec_sync("c", "sh", "-c", "sleep 60 & echo done", drain_ms=200)

    assert (held.exit_code, held.stdout) == (0, b"done\n")
    # The init, and the sleep that was left behind on purpose.
    until(lambda: len(pod.task("Pids", pb.PidsRequest(id="c"), pb.PidsResponse).processes) == 2)


def test_many_execs_at_once(pod: Pod) -> None:
    """Execs of one container go side by side, each with its own output and exit code."""
    pod.run("c", "sleep", "100")
    requests = [
        shim_pb2.ExecSyncRequest(
            container_id="c",
            process=json.dumps(
                {
                    "args": ["sh", "-c", f"echo {n}; exit {n}"],
                    "cwd": "/",
                    "env": ["PATH=/bin"],
                    "user": {"uid": 0, "gid": 0},
                }
            ).encode(),
            timeout_ms=60_000,
            drain_ms=1_000,
        )
        for n in range(12)
    ]
    futures = [
        pod.client.submit("bulkhead.shim.v1.Shim", "ExecSync", request, shim_pb2.ExecSyncResponse)
        for request in requests
    ]
    answers = [future.result(60) for future in futures]

    assert [(a.exit_code, a.stdout) for a in answers] == [(n, b"%d\n" % n) for n in range(12)]


def test_pause_update_and_stats(pod: Pod) -> None:
    """A paused container is PAUSED and still dies of SIGKILL; limits change; the cgroup's numbers are answered."""
    pod.run("c", "sleep", "100")
    resources = json.dumps({"pids": {"limit": 77}}).encode()
    update = pb.UpdateTaskRequest(id="c")
    update.resources.value = resources
    pod.task("Update", update, Empty)

    def metrics() -> Any:
        packed = pod.task("Stats", pb.StatsRequest(id="c"), pb.StatsResponse).stats
        first = packed.type_url == "io.containerd.cgroups.v1.Metrics"
        return (cgroups_v1_pb2.Metrics if first else cgroups_v2_pb2.Metrics).FromString(packed.value)

    assert metrics().pids.limit == 77
    # The runtime, which has threads, becomes the program a moment after the start.
    until(lambda: metrics().pids.current == 1)
    pod.task("Pause", pb.PauseRequest(id="c"), Empty)
    assert pod.state("c").status == task_types_pb2.PAUSED

    pod.kill("c")

    assert pod.wait("c") == 137


def test_out_of_memory_is_noticed(pod: Pod) -> None:
    """A container that the kernel kills for want of memory has oom in its exit."""

    def limit(spec: dict[str, Any]) -> None:
        spec["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}

    pod.run("c", "sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}", change=limit)
    pod.wait("c")
    (left,) = pod.shim("Exits", shim_pb2.ExitsRequest(), shim_pb2.ExitsResponse).exits

    assert left.oom
    assert json.loads((pod.base / "c" / "exit.json").read_text())["oom"]


def test_nothing_outlives_an_init_without_a_pid_namespace(pod: Pod) -> None:
    """With the host's pid namespace the shim kills what the init leaves behind."""

    def host_pids(spec: dict[str, Any]) -> None:
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] != "pid"]

    pod.run("c", "sh", "-c", "sleep 1000 & echo $!", change=host_pids)
    assert pod.wait("c") == 0
    until(lambda: pod.lines("c"))
    left = int(pod.lines("c")[0][2])

    until(lambda: not os.path.exists(f"/proc/{left}"))


def test_an_exec_of_the_task_api(pod: Pod, tmp_path: Path) -> None:
    """Exec, Start, Wait and Delete as a stock client does them, with output to a file."""
    pod.run("c", "sleep", "100")
    request = pb.ExecProcessRequest(id="c", exec_id="e", stdout=f"file://{tmp_path}/out")
    request.spec.value = json.dumps(
        {"args": ["sh", "-c", "echo said; exit 4"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    ).encode()
    pod.task("Exec", request, Empty)
    assert pod.state("c", "e").status == task_types_pb2.CREATED
    pid = pod.task("Start", pb.StartRequest(id="c", exec_id="e"), pb.StartResponse).pid
    assert pod.task("Wait", pb.WaitRequest(id="c", exec_id="e"), pb.WaitResponse).exit_status == 4
    gone = pod.task("Delete", pb.DeleteRequest(id="c", exec_id="e"), pb.DeleteResponse)

    assert (gone.pid, gone.exit_status) == (pid, 4)
    assert (tmp_path / "out").read_text() == "said\n"


def test_containers_outlive_a_killed_shim(zygote: Zygote) -> None:
    """SIGKILL of the shim leaves the container running, for whoever kills it by its cgroup."""
    pod = Pod(zygote, "killed-shim", "runc").fork()
    pid = pod.run("c", "sleep", "1000")
    os.kill(pod.pid, signal.SIGKILL)
    until(lambda: pod.client.closed)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    time.sleep(0.2)

    assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))
    os.system(f"runc --root {zygote.directory}/run/k8s.io delete --force c")


def test_signals_do_not_end_a_shim_and_a_live_one_is_not_replaced(zygote: Zygote) -> None:
    """SIGTERM, SIGHUP and SIGINT pass by; a second order for the same directory is refused."""
    pod = Pod(zygote, "stubborn", "runc").fork()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pod.pid, number)
    order = {"id": "stubborn", "namespace": "k8s.io", "directory": str(pod.directory), "stream_gid": 0}
    refused = zygote.order({"fork": order})
    outside = zygote.order({"fork": order | {"directory": "/tmp/elsewhere"}})

    assert pod.shim("Info", shim_pb2.InfoRequest(), shim_pb2.InfoResponse).pid == pod.pid
    assert refused["error"]["code"] == AlreadyExists.code
    assert outside["error"]["code"] == 7
    pod.close()


def test_a_pod_costs_little(zygote: Zygote) -> None:
    """A shim with one container has at most 3.5 MB to itself."""
    pod = Pod(zygote, "small", "runc").fork()
    pod.run("c", "sleep", "1000")
    rollup = Path(f"/proc/{pod.pid}/smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    pod.close()

    assert private < 3500
