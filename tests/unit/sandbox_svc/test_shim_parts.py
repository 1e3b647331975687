"""The shim's small parts: names of stdio, start protocols, mount plans, cgroups, options, states, tickets."""

import json
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as Packed
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import task_types_pb2
from bulkhead.proto.containerd.bootstrap_pb2 import BootstrapParams, BootstrapResult, Extension
from bulkhead.proto.containerd.runc_options_pb2 import Options
from bulkhead.proto.containerd.runtime_options_pb2 import Options as ConfiguredOptions
from bulkhead.proto.containerd.types_pb2 import Mount
from sandbox_svc import linux
from sandbox_svc.shim import cgroup, mounts, options, start, uris
from sandbox_svc.shim.execsync import Budget, Capture
from sandbox_svc.shim.loop import Loop
from sandbox_svc.shim.processes import ALLOWED, Process, has_private_pids
from sandbox_svc.shim.reaper import Exit, environment
from sandbox_svc.shim.runtime import complaint
from sandbox_svc.shim.streamset import IoSpec
from sandbox_svc.shim.tickets import Tickets


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(-1, 10**6))
def test_a_log_path_survives_its_uri(path: str, size: int) -> None:
    """Whatever characters a log path has, the shim opens that path."""
    assert uris.parse(uris.cri_log("/" + path, size)) == uris.CriLog("/" + path, size)


def test_names_of_stdio() -> None:
    """Plain paths are named pipes, the rest is told by its scheme, an unknown one is refused by name."""
    assert uris.parse("") is None
    assert uris.parse("/run/fifo/x") == uris.Fifo("/run/fifo/x")
    assert uris.parse("file:///var/log/x") == uris.File("/var/log/x")
    assert uris.parse("cri-log://?max_line_size=16384") == uris.CriLog("", 16384)
    assert uris.parse("cri-stdin://?once=1") == uris.CriStdin(once=True)
    assert uris.parse(uris.cri_stdin(once=False)) == uris.CriStdin(once=False)
    with pytest.raises(InvalidArgument, match="binary"):
        uris.parse("binary:///bin/logger")


def test_arguments_as_go_writes_them() -> None:
    """One or two dashes, with or without equals sign, booleans with or without a value."""
    words = [
        "-namespace",
        "k8s.io",
        "--address=/run/c.sock",
        "-publish-binary",
        "/bin/c",
        "-id",
        "x",
        "-debug",
        "start",
    ]
    parsed = start.parse_arguments(words)

    assert (parsed.action, parsed.id, parsed.namespace, parsed.address) == ("start", "x", "k8s.io", "/run/c.sock")
    assert (parsed.publish_binary, parsed.debug) == ("/bin/c", True)
    assert not start.parse_arguments(["-debug=false", "start"]).debug
    with pytest.raises(InvalidArgument, match="nonsense"):
        start.parse_arguments(["-nonsense", "start"])


def packed(message: Options) -> Packed:
    return Packed(type_url="containerd.runc.v1.Options", value=message.SerializeToString())


ARGUMENTS = start.Arguments(action="start", id="c1", namespace="k8s.io", address="/run/c.sock")


def test_bootstrap_params_are_told_by_the_id() -> None:
    """2.3 and later: parameters and options come in one message, the answer is a BootstrapResult."""
    params = BootstrapParams(instance_id="c1", namespace="other", containerd_ttrpc_address="unix:///t", socket_dir="/s")
    params.extensions.append(Extension(value=packed(Options(shim_cgroup="/shims"))))
    call = start.understand(ARGUMENTS, params.SerializeToString(), {"TTRPC_ADDRESS": "/env"})

    assert (call.bootstrap, call.namespace, call.events, call.socket_directory) == (True, "other", "unix:///t", "/s")
    assert call.options.shim_cgroup == "/shims"
    result = BootstrapResult.FromString(start.answer(call, "unix:///s/x", {}))
    assert (result.version, result.address, result.protocol) == (3, "unix:///s/x", "ttrpc")


@pytest.mark.parametrize("stdin", [b"", packed(Options(shim_cgroup="/shims")).SerializeToString(), b"\xff\xfe junk"])
def test_older_callers_send_options_or_nothing(stdin: bytes) -> None:
    """1.x reads the bare address; 2.0 to 2.2 set MAX_SHIM_VERSION and read JSON."""
    call = start.understand(ARGUMENTS, stdin, {"TTRPC_ADDRESS": "/env"})

    assert (call.bootstrap, call.namespace, call.events) == (False, "k8s.io", "/env")
    assert call.options.shim_cgroup == ("/shims" if stdin[:1] == b"\n" else "")
    assert start.answer(call, "unix:///s/x", {}) == b"unix:///s/x"
    answer = json.loads(start.answer(call, "unix:///s/x", {"MAX_SHIM_VERSION": "3"}))
    assert answer == {"version": 3, "address": "unix:///s/x", "protocol": "ttrpc"}


def test_a_pod_is_one_group(tmp_path: Path) -> None:
    """The annotation names the group; without it, or without a spec, a container is its own."""
    assert start.group(str(tmp_path), "c1") == "c1"
    (tmp_path / "config.json").write_text('{"annotations": {"io.kubernetes.cri.sandbox-id": "pod1"}}')
    assert start.group(str(tmp_path), "c1") == "pod1"


def test_options_as_a_toml_table() -> None:
    """containerd's CRI sends the table of a runtime it does not know; unknown keys have no effect."""
    body = b'BinaryName = "crun"\nSystemdCgroup = true\nIoUid = 7\nSomething = "else"\n'
    configured = ConfiguredOptions(type_url="x", config_body=body)
    read = options.read(Packed(type_url="runtimeoptions.v1.Options", value=configured.SerializeToString()))

    assert (read.binary_name, read.systemd_cgroup, read.io_uid) == ("crun", True, 7)
    with pytest.raises(InvalidArgument, match="kata"):
        options.read(Packed(type_url="kata.Options"))


def test_a_mount_plan() -> None:
    """Flags leave the data, a read-only bind takes two steps, propagation one of its own."""
    steps = mounts.plan(
        [
            Mount(type="overlay", source="overlay", options=["index=off", "lowerdir=/a:/b", "ro", "nodev"]),
            Mount(type="bind", source="/src", target="/data", options=["rbind", "ro", "rprivate"]),
        ],
        "/bundle/rootfs",
    )

    overlay = mounts.Step(
        "overlay", "/bundle/rootfs", "overlay", linux.MS_RDONLY | linux.MS_NODEV, "index=off,lowerdir=/a:/b"
    )
    bind = linux.MS_BIND | linux.MS_REC | linux.MS_RDONLY
    assert steps == [
        overlay,
        mounts.Step("/src", "/bundle/rootfs/data", "", bind, ""),
        mounts.Step("/src", "/bundle/rootfs/data", "", bind | linux.MS_REMOUNT, ""),
        mounts.Step("", "/bundle/rootfs/data", "", linux.MS_PRIVATE | linux.MS_REC, ""),
    ]


def test_many_layers_fit_into_a_page() -> None:
    """Lower directories become relative to what they have in common where a page is too small for them."""
    lower = [f"/var/lib/bulkhead/io.bulkhead/snapshots/{n}/fs" for n in range(127)]
    (step,) = mounts.plan([Mount(type="overlay", source="o", options=["lowerdir=" + ":".join(lower)])], "/r")

    assert step.directory == "/var/lib/bulkhead/io.bulkhead/snapshots"
    assert step.data.startswith("lowerdir=0/fs:1/fs:")
    assert len(step.data) < mounts.PAGE_LIMIT


@pytest.mark.parametrize("target", ["../up", "a/../../up"])
def test_a_mount_cannot_leave_the_rootfs(target: str) -> None:
    """A target outside the rootfs is refused before anything is mounted."""
    with pytest.raises(InvalidArgument, match="leaves the rootfs"):
        mounts.plan([Mount(type="bind", source="/", target=target)], "/bundle/rootfs")


def test_the_cgroup_of_a_process(tmp_path: Path) -> None:
    """Version 1 controllers, joined ones, named ones and the unified hierarchy are found where they are mounted."""
    for name in ("cpu,cpuacct", "memory", "systemd"):
        (tmp_path / name).mkdir()
    text = "4:memory:/pod/c\n3:cpu,cpuacct:/pod/c\n1:name=systemd:/x\n0::/pod/c\n"

    assert cgroup.parse(text, str(tmp_path)) == {
        "memory": f"{tmp_path}/memory/pod/c",
        "cpu": f"{tmp_path}/cpu,cpuacct/pod/c",
        "cpuacct": f"{tmp_path}/cpu,cpuacct/pod/c",
        "name=systemd": f"{tmp_path}/systemd/x",
        "": f"{tmp_path}/pod/c",
    }


def make_proc(tmp_path: Path, ours: str, theirs: str) -> cgroup.Cgroup:
    """Return the cgroup of process 7 beside a shim in another."""
    for name, path in (("self", ours), ("7", theirs)):
        (tmp_path / "proc" / name).mkdir(parents=True)
        (tmp_path / "proc" / name / "cgroup").write_text(f"0::{path}\n")
        directory = Path(f"{tmp_path}/cg{path}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text("4194303\n")
    return cgroup.Cgroup.of(7, proc=f"{tmp_path}/proc", root=f"{tmp_path}/cg")


@pytest.mark.parametrize(("ours", "theirs"), [("/svc", "/svc"), ("/pods/svc", "/pods")])
def test_a_cgroup_that_holds_the_shim_is_never_killed(tmp_path: Path, ours: str, theirs: str) -> None:
    """A container without a cgroup of its own has no processes that the shim would signal."""
    assert make_proc(tmp_path, ours, theirs).pids() == []


def test_a_cgroup_of_its_own_is_the_containers(tmp_path: Path) -> None:
    """Beside the shim's cgroup, or below it, the container's is its own."""
    assert make_proc(tmp_path, "/svc", "/svc/c").pids() == [4194303]


def test_oom_kills_are_counted(tmp_path: Path) -> None:
    """Both versions' files are understood; no file is no kill."""
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")

    assert cgroup.Cgroup({"memory": str(tmp_path)}).oom_kills() == 2
    assert cgroup.Cgroup({"": str(tmp_path)}).oom_kills() == 3
    assert cgroup.Cgroup({}).oom_kills() is None


def test_pid_namespaces(tmp_path: Path) -> None:
    """Only the first process of a namespace of its own takes everybody along."""
    for pid, line in (("1", "NSpid:\t812\t1\n"), ("2", "NSpid:\t813\n"), ("3", "NSpid:\t814\t12\n")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "status").write_text(f"Name:\tx\n{line}")

    assert [has_private_pids(pid, proc=str(tmp_path)) for pid in (1, 2, 3, 4)] == [True, False, False, False]


STATES = (task_types_pb2.CREATED, task_types_pb2.RUNNING, task_types_pb2.PAUSED, task_types_pb2.STOPPED)


@pytest.mark.parametrize("action", sorted(ALLOWED))
def test_the_states_allow_what_the_table_says(action: str) -> None:
    """Every action works in its states and is refused in the others, naming both."""
    for state in STATES:
        process = Process("c", "", IoSpec())
        process.status = state
        if state in ALLOWED[action][0]:
            process.require(action)
        else:
            with pytest.raises(FailedPrecondition, match=f"cannot {action} container 'c': it is "):
                process.require(action)


def test_the_first_exit_counts_and_a_start_cannot_undo_it() -> None:
    """A process that ended before Start was answered stays stopped."""
    process = Process("c", "e", IoSpec())
    process.ended(Exit(3, 1))
    process.started()
    process.ended(Exit(4, 2))

    assert (process.status, process.end) == (task_types_pb2.STOPPED, Exit(3, 1))


def test_a_terminal_has_its_size_from_the_start() -> None:
    """The size goes into the spec of a process with a terminal, and of no other."""
    process = Process("c", "e", IoSpec(terminal=True), b'{"args": ["sh"]}')
    process.size = (80, 24)
    assert json.loads(process.sized_spec()) == {"args": ["sh"], "consoleSize": {"width": 80, "height": 24}}
    process.io_spec = IoSpec()
    assert process.sized_spec() == b'{"args": ["sh"]}'


def test_the_runtimes_last_error_counts(tmp_path: Path) -> None:
    """The complaint is the last error of a JSON log; lines of other kinds do not disturb it."""
    log = tmp_path / "log"
    log.write_text(
        '{"level":"error","msg":"first"}\n{"level":"error","msg":"the reason"}\n{"level":"info"}\nrubbish\n[1]\n'
    )

    assert complaint(str(log), 1) == "the reason"
    assert complaint(str(tmp_path / "none"), 7) == "exit status 7 and no error in its log"


def ticket(token: str = "t" * 32, ttl_ms: int = 0) -> shim_pb2.AddTicketRequest:
    return shim_pb2.AddTicketRequest(token=token, ttl_ms=ttl_ms, attach=shim_pb2.AttachTicket(container_id="c"))


def test_a_ticket_is_redeemed_once() -> None:
    """Redeemed, unknown and malformed tokens are all the same NotFound; a short or doubled one is refused."""
    tickets = Tickets(Loop())
    tickets.add(ticket())
    with pytest.raises(AlreadyExists):
        tickets.add(ticket())
    assert tickets.redeem("t" * 32).attach.container_id == "c"
    for token in ("t" * 32, "", None, 7, ["t"]):
        with pytest.raises(NotFound):
            tickets.redeem(token)
    with pytest.raises(InvalidArgument):
        tickets.add(ticket("short"))
    with pytest.raises(InvalidArgument):
        tickets.add(shim_pb2.AddTicketRequest(token="t" * 32))


def test_a_ticket_expires() -> None:
    """After its time a ticket is gone."""
    loop = Loop()
    loop.open()
    tickets = Tickets(loop)
    tickets.add(ticket(ttl_ms=1))
    loop.turn(0.1)
    loop.turn(0.1)
    loop.close()

    assert len(tickets) == 0


def test_captured_output_is_cut_for_both_streams_together() -> None:
    """What one stream took the other cannot have; beyond the inline size a memory file holds it."""
    budget = Budget(100_000)
    out, err = Capture(budget), Capture(budget)
    out.write(b"o" * 70_000)
    err.write(b"e" * 40_000)
    err.write(b"e")

    assert (out.length, err.length, budget.exceeded) == (70_000, 30_000, True)
    assert out.fd >= 0
    assert (err.fd, bytes(err.data)) == (-1, b"e" * 30_000)
    out.close()


def test_children_do_not_hear_of_our_service_manager() -> None:
    """What systemd says to the zygote is not said to runtimes, and they always have a PATH."""
    assert environment({b"NOTIFY_SOCKET": b"/run/x", b"LISTEN_FDS": b"1", b"HOME": b"/root", b"PATH": b"/x"}) == {
        b"HOME": b"/root",
        b"PATH": b"/x",
    }
    assert b"/usr/sbin" in environment({})[b"PATH"]
