"""`bulkhead images` on a running stack, with the tools that others use at the other side."""

import grp
import json
import os
import pty
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bulkhead import paths
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support import archives, images
from support.fake_registry import Handler, fake_registry
from support.images import Image, Layer, Pusher, digest
from support.pods import Pods
from support.stack import BIN, Stack

pytestmark = pytest.mark.root


class Cli:
    """The command line of one stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def run(
        self, *arguments: str, status: int = 0, data: bytes = b"", prefix: tuple[str, ...] = (), socket: bool = False
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a verb, and check its exit status."""
        verb, *rest = arguments
        own = str(paths.service_socket(self.stack.directory / "state" / "io.bulkhead", "image-svc"))
        where = ["--socket", own] if socket else ["--config", str(self.stack.config)]
        command = [*prefix, str(BIN / "bulkhead"), "images", verb, *where, *rest]
        done = subprocess.run(command, input=data, capture_output=True, timeout=60)
        assert done.returncode == status, (arguments, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def __call__(self, *arguments: str) -> str:
        """Run a verb and return what it prints."""
        return self.run(*arguments).stdout.decode()

    def names(self) -> list[str]:
        """Return the tags that the CRI lists."""
        found = self.stack.image_service().ListImages(cri.ListImagesRequest(), timeout=30).images
        return sorted(name for image in found for name in image.repo_tags)


@pytest.fixture(scope="module")
def cli(registry: str) -> Iterator[Cli]:
    """A stack and its command line."""
    with Stack(registry, number=77) as stack:
        yield Cli(stack)


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a scratch directory."""
    directory = Path(tempfile.mkdtemp(prefix="bhcli"))
    yield directory
    shutil.rmtree(directory)


def push_box(registry: str, name: str) -> str:
    """Push an image of busybox that no other shares a layer with, and return its name."""
    box = images.busybox()
    box.layers.append(Layer().file("name", name).tar())
    Pusher(registry).image(f"cli/{name}", "3", box)
    return f"{registry}/cli/{name}:3"


def skopeo(*arguments: str) -> str:
    """Run skopeo without TLS and signatures."""
    flags = {"copy": ["--src-tls-verify=false", "--dest-tls-verify=false"], "inspect": ["--tls-verify=false"]}
    verb, *rest = arguments
    done = subprocess.run(
        ["skopeo", "--insecure-policy", verb, *flags[verb], *rest], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def runs(cli: Cli, image: str, place: Path, name: str) -> None:
    """Run a pod with a container of an image that no registry is asked for."""
    pods = Pods(cli.stack.runtime_service(), image, place)
    config = pods.config(name)
    pod = pods.run(config)
    pods.start(pod, config, "main", "sleep 1000")
    pods.remove(pod)


def test_the_session_that_ctr_users_know(cli: Cli, registry: str) -> None:
    """Pull all platforms, look at the layers, tag, push, remove both names, pull again: others read what was pushed."""
    name, copy = f"{registry}/busybox:1", f"{registry}/mirror/busybox:a"
    assert cli("pull", "--all-platforms", name).startswith(f"{name}: sha256:")
    head, row = cli("layerinfo", "--platform", "linux/amd64", name).splitlines()
    assert head.split() == ["#", "DIGEST", "PLATFORM", "SIZE", "ENCRYPTION", "RECIPIENTS"]
    assert row.split()[2] == "linux/amd64"
    cli("tag", name, copy)
    assert {name, copy} <= set(cli.names())
    pushed = cli("push", copy).split()[-1]

    # The whole index went, and skopeo finds the same bytes under both names.
    raw = skopeo("inspect", "--raw", f"docker://{copy}")
    assert digest(raw.encode()) == pushed
    assert raw == skopeo("inspect", "--raw", f"docker://{name}")
    assert len(json.loads(raw)["manifests"]) == 2
    cli("rm", copy, name)
    assert not {name, copy} & set(cli.names())
    cli("pull", copy)
    assert copy in cli.names()
    cli("rm", copy)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_of_others_run(cli: Cli, registry: str, place: Path, form: str) -> None:
    """What skopeo wrote is imported and runs, though no registry has that name: an air-gapped node."""
    name = f"nowhere.invalid/{form}:1"
    archive = place / "image.tar"
    skopeo("copy", "--override-os", "linux", f"docker://{registry}/busybox:3", f"{form}:{archive}:{name}")
    assert cli("import", str(archive)) == f"{name}\n"
    assert name in cli.names()
    runs(cli, name, place, form)
    cli("rm", name)
    assert name not in cli.names()


def test_others_read_what_we_export(cli: Cli, registry: str, place: Path) -> None:
    """skopeo finds the manifest unchanged in tar and directory, and umoci unpacks the same tree."""
    name = push_box(registry, "exported")
    cli("pull", name)
    tar, directory, docker = place / "out.tar", place / "layout", place / "docker.tar"
    cli("export", str(tar), name)
    cli("export", "--directory", str(directory), name)
    cli("export", "--format", "docker-archive", str(docker), name)

    manifest = skopeo("inspect", "--raw", f"docker://{name}")
    assert skopeo("inspect", "--raw", f"oci-archive:{tar}") == manifest
    assert skopeo("inspect", "--raw", f"oci:{directory}:3") == manifest
    ours, theirs = (
        json.loads(skopeo("inspect", "--config", where)) for where in (f"docker-archive:{docker}", f"docker://{name}")
    )
    assert ours == theirs
    subprocess.run(
        ["umoci", "unpack", "--image", f"{directory}:3", str(place / "bundle")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (place / "bundle" / "rootfs" / "bin" / "busybox").stat().st_mode & 0o111


@contextmanager
def containerd(directory: Path) -> Iterator[tuple[str, ...]]:
    """Run a stock containerd without its CRI part; yield the ctr command that talks to it."""
    config = directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{directory}/root"\nstate = "{directory}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs"]\n'
        f'[grpc]\naddress = "{directory}/c.sock"\n[ttrpc]\naddress = "{directory}/t.sock"\n'
        f'[plugins."io.containerd.internal.v1.opt"]\npath = "{directory}/opt"\n'
    )
    with (directory / "containerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            ["containerd", "--config", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    ctr = ("ctr", "--address", f"{directory}/c.sock")
    try:
        deadline = time.monotonic() + 60
        while subprocess.run([*ctr, "version"], capture_output=True, timeout=60, check=False).returncode:
            assert time.monotonic() < deadline, (directory / "containerd.log").read_text()
            time.sleep(0.1)
        yield ctr
    finally:
        daemon.terminate()
        daemon.wait(60)


def test_ctr_both_ways(cli: Cli, registry: str, place: Path) -> None:
    """containerd imports our archive and lists the same digest; what it exports we import under its name."""
    name = push_box(registry, "ctr")
    cli("pull", name)
    cli("export", str(place / "ours.tar"), name)
    expected = json.loads(cli("inspect", name))[0]["target_digest"]
    with containerd(place) as ctr:

        def run(*arguments: str) -> str:
            done = subprocess.run([*ctr, "images", *arguments], capture_output=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()

        run("import", "--no-unpack", str(place / "ours.tar"))
        row = next(line for line in run("ls").splitlines() if line.startswith(name))
        assert row.split()[2] == expected
        run("tag", name, "nowhere.invalid/from-ctr:5")
        run("export", str(place / "theirs.tar"), "nowhere.invalid/from-ctr:5")
    assert cli("import", str(place / "theirs.tar")) == "nowhere.invalid/from-ctr:5\n"
    assert json.loads(cli("inspect", "nowhere.invalid/from-ctr:5"))[0]["target_digest"] == expected
    cli("rm", "nowhere.invalid/from-ctr:5")


def test_in_use(cli: Cli, registry: str, place: Path) -> None:
    """An image that a container uses is neither removed nor pruned, and its name can be taken away by force."""
    name = push_box(registry, "used")
    cli("pull", name)
    pods = Pods(cli.stack.runtime_service(), name, place)
    config = pods.config("in-use")
    pod = pods.run(config)
    container = pods.start(pod, config, "main", "sleep 1000")
    assert container[:13] in cli.run("rm", name, status=6).stderr.decode()
    cli("prune", "--all", "--force")
    assert name in cli.names()
    assert f"{registry}/pause:1" in cli.names()  # pinned, and in use
    cli("rm", "--force", name)
    assert name not in cli.names()
    assert pods.exec(container, "cat", "/name").stdout == b"used"
    pods.remove(pod)


def test_who_may(cli: Cli, registry: str) -> None:
    """Root and members of the group bulkhead may, others are told who may."""
    nobody = pwd.getpwnam("nobody").pw_uid
    group = grp.getgrnam("bulkhead").gr_gid
    member = ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", f"--groups={group}")
    stranger = ("setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups")
    assert b"REPOSITORY" in cli.run("ls", prefix=member, socket=True).stdout
    assert b"group bulkhead" in cli.run("ls", prefix=stranger, socket=True, status=4).stderr


@pytest.fixture
def large(registry: str) -> str:
    """Hold an image of two layers of 12 MB in the registry and return its name."""
    layers = [Layer().file(f"f{n}", os.urandom(12_000_000)).tar() for n in range(2)]
    Pusher(registry).image("large", "1", Image(layers))
    return f"{registry}/large:1"


def test_bars_on_a_terminal(cli: Cli, large: str) -> None:
    """On a terminal every layer has a bar with its size, and the last line is the digest."""
    master, slave = pty.openpty()
    command = [str(BIN / "bulkhead"), "images", "pull", "--config", str(cli.stack.config), large]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    child = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        shown += piece
    os.close(master)
    assert child.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
    assert "12.0/12.0 MB" in text
    assert "24.0/24.0 MB" in text
    assert re.search(rf"{re.escape(large)}: sha256:[0-9a-f]{{64}}", text)
    cli("rm", large)


def test_an_interrupted_pull(cli: Cli) -> None:
    """It is seen by watchers and in the metrics while it waits; interrupted it ends with 130 and is let go."""
    gate = threading.Event()

    def hold(handler: Handler) -> bool:
        gate.wait(120)
        return False

    with fake_registry() as registry:
        registry.push("app", "1", Image([Layer().file("a", "x").tar()]))
        registry.on("/blobs/sha256:", hold)
        name = f"{registry.address}/app:1"
        # A shell without job control starts what it leaves in the background with SIGINT ignored.
        own = ["env", "--default-signal=INT", str(BIN / "bulkhead")]
        command = [*own, "images", "pull", "--config", str(cli.stack.config), name]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda: registry.asked("/blobs/"))
        (seen,) = json.loads(cli("watch", "--once", "--json"))["pulls"]
        assert seen["image"] == name
        url = f"http://127.0.0.1:{cli.stack.ports['image-svc']}/metrics"
        metrics = urllib.request.urlopen(url, timeout=30).read().decode()
        assert f'bulkhead_image_pull_size_bytes{{reference="{name}"}}' in metrics
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        child.communicate()
        gate.set()
        wait_for(lambda: not json.loads(cli("watch", "--once", "--json"))["pulls"])
        assert name not in cli.names()


def wait_for(true: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_hostile_archive_leaves_nothing(cli: Cli, registry: str, place: Path) -> None:
    """With the real helper a layer that is no tar fails the import: no name, no blob, no directory stays."""
    usage = json.loads(cli("usage", "--json"))
    bad = Image([Layer().file("good", "x").tar(), b"no tar" * 1000])
    data = archives.tar(archives.oci(bad, "nowhere.invalid/bad:1"))
    assert cli.run("import", "-", data=data, status=2).stdout == b""

    def kept(found: dict[str, object]) -> tuple[object, object]:
        return found["blobs"], found["layers"]

    wait_for(lambda: kept(json.loads(cli("usage", "--json"))) == kept(usage))
    assert "nowhere.invalid/bad:1" not in cli.names()
