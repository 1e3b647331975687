"""Small parts of sandbox-svc: files, signals, runtimes, processes, layers, volumes, shim answers."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto import images_pb2
from bulkhead.proto.containerd.bootstrap_pb2 import BootstrapResult
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import facts, pod_files, process, rootfs_users, service, stop_signal, trees, volumes
from sandbox_svc.oci import users
from sandbox_svc.oci.model import ImageVolume, RuntimeFacts
from sandbox_svc.rpc.lists import batches
from sandbox_svc.runtimes import Resolved, Runtimes
from sandbox_svc.store import messages
from sandbox_svc.store.records import ContainerRecord, Process
from sandbox_svc.task import foreign, stdio


def test_resolv_conf_has_a_line_for_each_part() -> None:
    """Searches and options share a line, servers have one each; an empty configuration is an empty file."""
    dns = cri.DNSConfig(servers=["1.1.1.1", "::1"], searches=["a", "b"], options=["ndots:5", "rotate"])
    assert pod_files.resolv_conf(dns) == "search a b\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5 rotate\n"
    assert pod_files.resolv_conf(cri.DNSConfig()) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("kill", 9), ("15", 15), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-2", signal.SIGRTMAX - 2)],
)
def test_signals_are_known_by_name_and_number(text: str, number: int) -> None:
    """All spellings that images use."""
    assert stop_signal.number(text) == number


@pytest.mark.parametrize("text", ["", "0", "SIGNOPE", "RTMIN+99", "65", "-1"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match=r"signal|invalid"):
        stop_signal.number(text)


def test_every_cri_signal_has_a_number() -> None:
    """The CRI's enumeration is covered, but for the default and two names of other systems."""
    assert stop_signal.cri_signal(cri.SIGNAL_SIGRTMINPLUS15) == signal.SIGRTMIN + 15
    assert stop_signal.cri_signal(cri.SIGNAL_SIGRTMAXMINUS14) == signal.SIGRTMAX - 14
    values: list[Any] = list(cri.Signal.values())
    for value in values:
        if value != cri.SIGNAL_RUNTIME_DEFAULT:
            assert stop_signal.cri_signal(value) > 0


def test_the_stop_signal_is_the_configurations_then_the_images() -> None:
    """A request's signal wins; an image's unreadable one falls back to SIGTERM."""
    record = ContainerRecord(id="c", sandbox_id="p", config=cri.ContainerConfig(), created_at=1)
    assert stop_signal.stop_signal(record) == signal.SIGTERM
    image = ContainerRecord(
        id="c", sandbox_id="p", config=cri.ContainerConfig(), created_at=1, image_stop_signal="SIGQUIT"
    )
    assert stop_signal.stop_signal(image) == signal.SIGQUIT
    image.config.stop_signal = cri.SIGNAL_SIGUSR1
    assert stop_signal.stop_signal(image) == signal.SIGUSR1


def test_an_unknown_handler_is_named_with_the_known_ones(tmp_path: Path) -> None:
    """The message helps to find the right name."""
    config = Runtime(runtimes={"gvisor": RuntimeHandler("gvisor", "io.containerd.runsc.v1")})
    runtimes = Runtimes(config, tmp_path)
    with pytest.raises(InvalidArgument, match=r"'kata'.*gvisor, runc"):
        runtimes.resolve("kata")
    assert not runtimes.resolve("gvisor").ours
    assert runtimes.resolve("gvisor").options() is None


def test_runtime_options_are_passed_on() -> None:
    """The options table reaches the shim's Create, with the binary that was chosen."""
    handler = RuntimeHandler("runc", options={"SystemdCgroup": True, "IoUid": 7})
    resolved = Resolved("runc", handler, "/usr/bin/crun", RuntimeFacts(name="crun"), "/run/x")
    options = resolved.options()
    assert options is not None
    shown = str(options).split()
    assert shown == 'io_uid: 7 binary_name: "/usr/bin/crun" root: "/run/x" systemd_cgroup: true'.split()  # noqa: SIM905


def test_capabilities_and_kernel_are_read() -> None:
    """Bits become names; a release becomes two numbers."""
    assert facts.capabilities("CapPrm:\t0000000000000003\n") == ("CAP_CHOWN", "CAP_DAC_OVERRIDE")
    assert facts.kernel("6.1.0-18-amd64") == (6, 1)
    assert facts.kernel("strange") == (4, 8)


def test_a_process_is_known_by_more_than_its_pid() -> None:
    """We are alive; the same pid with another start or boot is somebody else."""
    me = process.identify(os.getpid())
    assert me is not None
    assert process.alive(me)
    assert not process.alive(Process(me.pid, me.start_time + 1, me.boot_id))
    assert not process.alive(Process(me.pid, me.start_time, "other"))
    assert not process.alive(None)
    assert process.identify(0) is None
    assert process.gone_within(Process(me.pid, 1, me.boot_id), 0)


def overlay(*lower: Path, upper: Path | None = None) -> list[images_pb2.Mount]:
    options = [f"lowerdir={':'.join(map(str, lower))}"] + ([f"upperdir={upper}"] if upper else [])
    return [images_pb2.Mount(type="overlay", source="overlay", options=options)]


def test_passwd_comes_from_the_topmost_layer_that_has_it(tmp_path: Path) -> None:
    """A file above hides the one below; each file is looked for by itself."""
    for name in ("a", "b"):
        (tmp_path / name / "etc").mkdir(parents=True)
    (tmp_path / "a/etc/passwd").write_text("upper")
    (tmp_path / "b/etc/passwd").write_text("lower")
    (tmp_path / "b/etc/group").write_text("groups")
    found = rootfs_users.read(overlay(tmp_path / "a", tmp_path / "b"))
    assert (found.passwd, found.group) == (b"upper", b"groups")


def test_an_image_cannot_point_passwd_at_the_node(tmp_path: Path) -> None:
    """A symlink out of the layer stays in the layer; a FIFO is not read; neither hangs."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "etc/group")
    found = rootfs_users.read(overlay(tmp_path))
    assert (found.passwd, found.group) == (None, None)


def test_a_huge_passwd_is_refused_and_not_cut(tmp_path: Path) -> None:
    """The line at the cut would name another user; no more is read than tells that it is too long."""
    (tmp_path / "etc").mkdir()
    with open(tmp_path / "etc/passwd", "wb") as file:
        file.write(b"a:x:10:10::/:/bin/sh\n")
        file.truncate(1 << 30)
    found = rootfs_users.read(overlay(tmp_path))
    assert found.passwd is not None
    assert len(found.passwd) == rootfs_users.SIZE_LIMIT
    with pytest.raises(InvalidArgument, match="/etc/passwd has more than"):
        users.resolve("nobody", found, "user")


def test_the_status_shows_the_signal_that_will_be_sent() -> None:
    """The configuration's, else the image's; an image that names none leaves it to the default."""
    container = ContainerRecord(id="c", sandbox_id="p", config=cri.ContainerConfig(), created_at=1)
    for text, shown in (
        ("", cri.SIGNAL_RUNTIME_DEFAULT),
        ("SIGQUIT", cri.SIGNAL_SIGQUIT),
        ("3", cri.SIGNAL_SIGQUIT),
        ("RTMIN+3", cri.SIGNAL_SIGRTMINPLUS3),
        ("RTMAX", cri.SIGNAL_SIGRTMAX),
        ("nonsense", cri.SIGNAL_RUNTIME_DEFAULT),
    ):
        status = messages.container_status(replace(container, image_stop_signal=text), cri.CONTAINER_RUNNING)
        assert status.stop_signal == shown, text
    asked = replace(container, config=cri.ContainerConfig(stop_signal=cri.SIGNAL_SIGUSR1), image_stop_signal="SIGQUIT")
    assert messages.container_status(asked, cri.CONTAINER_RUNNING).stop_signal == cri.SIGNAL_SIGUSR1


def test_volumes_begin_as_the_images_content(tmp_path: Path) -> None:
    """Layers are merged bottom up, with owners' modes, and nothing outside the volume's path is taken."""
    low, high, target = tmp_path / "low", tmp_path / "high", tmp_path / "volume"
    (low / "data/sub").mkdir(parents=True)
    (low / "data/sub/x").write_text("old")
    (low / "data/keep").write_text("keep")
    (high / "data/sub").mkdir(parents=True)
    (high / "data/sub/x").write_text("new")
    (high / "data/link").symlink_to("/etc/shadow")
    (low / "data").chmod(0o1777)
    (high / "data").chmod(0o1777)
    target.mkdir()
    volumes.fill([ImageVolume("/data", str(target))], overlay(high, low))
    assert (target / "sub/x").read_text() == "new"
    assert (target / "keep").read_text() == "keep"
    assert os.readlink(target / "link") == "/etc/shadow"
    assert target.stat().st_mode & 0o7777 == 0o1777


def test_removing_a_tree_is_idempotent(tmp_path: Path) -> None:
    """Nothing there is fine; a tree goes whole, a symlink without what it leads to."""
    (tmp_path / "x/y").mkdir(parents=True)
    (tmp_path / "x/y/file").write_text("text")
    (tmp_path / "kept").mkdir()
    (tmp_path / "x/link").symlink_to(tmp_path / "kept")
    trees.remove(tmp_path / "x")
    trees.remove(tmp_path / "x")
    assert os.listdir(tmp_path) == ["kept"]
    assert "/proc" in trees.mounts_below(Path("/proc"))


def test_stdio_is_named_for_our_shim() -> None:
    """A log path becomes a URI on both streams; a terminal has one; stdin is fed by attach."""
    config = cri.ContainerConfig()
    record = ContainerRecord(id="c", sandbox_id="p", config=config, created_at=1, log_path="/var/log/a b/0.log")
    uri = "cri-log:///var/log/a%20b/0.log?max_line_size=16384"
    assert stdio.names(record, 16384) == ("", uri, uri)
    config.stdin, config.stdin_once, config.tty = True, True, True
    assert stdio.names(record, 16384) == ("cri-stdin://?once=1", uri, "")
    silent = ContainerRecord(id="c", sandbox_id="p", config=cri.ContainerConfig(), created_at=1)
    assert stdio.names(silent, 100)[1] == "cri-log://?max_line_size=100"


def test_the_three_answers_of_a_shims_start_are_understood() -> None:
    """Protobuf, JSON and text."""
    result = BootstrapResult(version=3, address="unix:///run/a", protocol="ttrpc").SerializeToString()
    assert foreign.parse(result) == foreign.Started("unix:///run/a", "v3")
    text = json.dumps({"version": 2, "address": "unix:///run/b", "protocol": "ttrpc"}).encode()
    assert foreign.parse(text) == foreign.Started("unix:///run/b", "v2")
    assert foreign.parse(b"unix:///run/c\n") == foreign.Started("unix:///run/c", "v2")
    for bad in (b'{"address": "unix:///x", "protocol": "grpc"}', b"", b"warning: something", b'{"version": 3}'):
        with pytest.raises(FailedPrecondition):
            foreign.parse(bad)


def test_a_foreign_shim_is_found_by_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last two parts of the type make the name; a path given wins."""
    monkeypatch.setattr("shutil.which", lambda name: f"/opt/{name}")
    assert foreign.binary_of("io.containerd.runsc.v1", "") == "/opt/containerd-shim-runsc-v1"
    assert foreign.binary_of("io.containerd.kata.v2", "/x/shim") == "/x/shim"
    with pytest.raises(InvalidArgument):
        foreign.binary_of("runsc", "")


def test_streams_are_cut_by_size() -> None:
    """No item is lost or split, and no message outgrows the bound by more than one item."""
    items = [bytes([n]) * (1 << 20) for n in range(10)]
    cut = list(batches(iter(items)))
    assert b"".join(cut) == b"".join(items)
    assert max(map(len, cut)) <= 4 << 20
    assert list(batches(iter([]))) == []


def test_every_rpc_is_answered_or_named_as_unbuilt() -> None:
    """The tables hold only RPCs of the proto, each once."""
    assert not set(service.SHORT) & set(service.LONG)
    assert "RunPodSandbox" not in service.unbuilt()
    assert not set(service.unbuilt()) & {*service.SHORT, *service.LONG}
