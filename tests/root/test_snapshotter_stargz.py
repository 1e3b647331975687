"""The real stargz snapshotter behind two runtime handlers of a whole stack, beside containerd's and our own overlayfs.

Debian has stargz-snapshotter's client only: the server is a small program of ours around the module's own service.
"""

import hashlib
import os
import pwd
import random
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from bulkhead import rpc
from bulkhead.proto.containerd import snapshots_pb2
from bulkhead.proto.containerd.snapshots_pb2_grpc import SnapshotsStub
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc
from support import stargz
from support.cutting_proxy import Cuts, cutting_proxy
from support.images import Image, Layer, Pusher, busybox_layer
from support.pods import Pods
from support.stack import BIN, Stack
from support.stargz import Stargz

pytestmark = pytest.mark.root

_HANDLER = """[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
snapshotter = "{snapshotter}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}.options]
BinaryName = "{binary}"
"""
#: By address.
_CHANNELS: dict[str, grpc.Channel] = {}
#: Bytes that gzip cannot make smaller, so that what was not fetched shows.
BULK = random.Random(7).randbytes(12 * 1024 * 1024)


@pytest.fixture(scope="module")
def counted(registry: str) -> Iterator[Cuts]:
    """The registry behind a proxy that counts."""
    with cutting_proxy(registry) as cuts:
        yield cuts


@pytest.fixture(scope="module")
def snapshotter(tmp_path_factory: pytest.TempPathFactory, own_network: None) -> Iterator[Stargz]:
    """The snapshotter, open to image-svc's user."""
    with serving(plain=False) as made:
        yield made


@pytest.fixture(scope="module")
def plain(own_network: None) -> Iterator[Stargz]:
    """Containerd's overlayfs snapshotter, open to image-svc's user."""
    with serving(plain=True) as made:
        yield made


@contextmanager
def serving(*, plain: bool) -> Iterator[Stargz]:
    """Run a snapshotter in a directory of its own."""
    directory = Path(tempfile.mkdtemp(prefix="bhsgz"))
    with Stargz(directory, pwd.getpwnam("bulkhead-image").pw_gid, plain) as made:
        yield made
    subprocess.run(["rm", "-rf", str(directory)], check=True, timeout=60)


@pytest.fixture(scope="module")
def stack(registry: str, snapshotter: Stargz, plain: Stargz) -> Iterator[Stack]:
    """A stack with the handlers lazy-runc and lazy-crun, whose images are stargz's, and plain-runc."""
    runtimes = (
        ("lazy-runc", "stargz", "/usr/sbin/runc"),
        ("lazy-crun", "stargz", "/usr/bin/crun"),
        ("plain-runc", "plain", "/usr/sbin/runc"),
    )
    handlers = "".join(_HANDLER.format(name=name, snapshotter=of, binary=binary) for name, of, binary in runtimes)
    with Stack(
        registry,
        number=97,
        images="disable_snapshot_annotations = false",
        more=handlers + snapshotter.config + plain.config,
    ) as running:
        yield running
        # A process with a live connection is not one to fork, which other tests do.
        while _CHANNELS:
            _CHANNELS.popitem()[1].close()


@pytest.fixture(scope="module")
def lazy(counted: Cuts, registry: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """An image of two eStargz layers, one of which has twelve megabytes that few ask for; and its blobs."""
    bulk = Layer().dir("data").file("data/bulk", BULK).file("data/small", "little").file("etc/motd", "hello\n")
    scratch = tmp_path_factory.mktemp("estargz")
    blobs = stargz.push(Pusher(registry), "lazy", "1", [busybox_layer(), bulk.tar()], scratch)
    return f"{counted.address}/lazy:1", blobs


def runtime(stack: Stack) -> "cri_grpc.RuntimeServiceStub":
    """Return a client that is patient with a busy machine."""
    return cri_grpc.RuntimeServiceStub(channel(stack.address))


def images(stack: Stack) -> "cri_grpc.ImageServiceStub":
    """Return a client that is patient with a busy machine."""
    return cri_grpc.ImageServiceStub(channel(stack.address))


def channel(address: str) -> grpc.Channel:
    """Return the connection to a stack."""
    if address not in _CHANNELS:
        _CHANNELS[address] = grpc.insecure_channel(f"unix:{address}")
    return _CHANNELS[address]


def pull(stack: Stack, image: str, handler: str = "") -> str:
    """Pull for a runtime handler."""
    spec = cri.ImageSpec(image=image, runtime_handler=handler)
    return str(images(stack).PullImage(cri.PullImageRequest(image=spec), timeout=120).image_ref)


def present(stack: Stack, image: str, handler: str = "") -> bool:
    """Tell whether an image is here for a runtime handler."""
    spec = cri.ImageSpec(image=image, runtime_handler=handler)
    return bool(images(stack).ImageStatus(cri.ImageStatusRequest(image=spec), timeout=30).HasField("image"))


def run(stack: Stack, image: str, handler: str, command: str, logs: Path, **fields: Any) -> tuple[int, str]:
    """Run a command in a pod of its own and return its exit status and output."""
    pods = Pods(runtime(stack), image, logs, handler)
    config = pods.config(f"{handler or 'own'}-{time.monotonic_ns()}")
    pod = pods.run(config)
    try:
        container = pods.start(pod, config, "main", command, **fields)
        status = pods.wait_exited(container)
        return status.exit_code, (logs / "main.log").read_text()
    finally:
        runtime(stack).StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        runtime(stack).RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=60)


def remove(stack: Stack, image: str) -> None:
    """Remove an image."""
    images(stack).RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)), timeout=60)


def kept(snapshotter: Stargz) -> set[str]:
    """Return the names and keys of everything in the snapshotter."""
    with rpc.channel(str(snapshotter.socket)) as own:
        found = SnapshotsStub(own).List(snapshots_pb2.ListSnapshotsRequest(), timeout=30)
        return {info.name for part in found for info in part.info}


def wait(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def blob(stack: Stack, digest: str) -> Path:
    """Return where a blob would lie."""
    return stack.directory / "root/io.bulkhead/blobs" / digest.replace(":", "/")


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_lazy_pull(
    stack: Stack, snapshotter: Stargz, counted: Cuts, lazy: tuple[str, list[str]], runtime: str, tmp_path: Path
) -> None:
    """An eStargz image runs before its layers were downloaded; what a container reads is fetched then, and right."""
    image, blobs = lazy
    before = counted.received

    image_id = pull(stack, image, f"lazy-{runtime}")
    code, output = run(stack, image, f"lazy-{runtime}", "cat /data/small; stat -c %s /data/bulk", tmp_path / "first")

    assert code == 0
    assert "little" in output
    assert str(len(BULK)) in output
    assert counted.received - before < len(BULK) / 2
    assert not any(blob(stack, each).exists() for each in blobs)
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    assert any("fuse" in line and str(snapshotter.root) in line for line in mounts)

    code, output = run(stack, image, f"lazy-{runtime}", "sha256sum /data/bulk", tmp_path / "second")
    assert code == 0
    assert hashlib.sha256(BULK).hexdigest() in output
    remove(stack, image_id)
    wait(lambda: not stargz.mounted(snapshotter.root))


def test_a_lazily_pulled_image_is_no_overlayfs_image(stack: Stack, lazy: tuple[str, list[str]], tmp_path: Path) -> None:
    """A handler whose snapshotter has neither the layers nor their blobs says so and what to do; a pull cures it."""
    image, _ = lazy
    pull(stack, image, "lazy-runc")
    assert present(stack, image, "lazy-runc")
    assert present(stack, image)
    assert not present(stack, image, "runc")
    with pytest.raises(grpc.RpcError) as caught:
        run(stack, image, "runc", "true", tmp_path)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "not in snapshotter overlayfs" in (caught.value.details() or "")
    assert "pull it for a runtime handler" in (caught.value.details() or "")

    pull(stack, image, "runc")
    assert present(stack, image, "runc")
    assert run(stack, image, "runc", "cat /data/small", tmp_path)[0] == 0
    assert run(stack, image, "lazy-runc", "cat /data/small", tmp_path)[0] == 0


@pytest.mark.parametrize("handler", ["lazy-runc", "plain-runc"])
def test_an_ordinary_image(
    stack: Stack, snapshotter: Stargz, plain: Stargz, registry: str, tmp_path: Path, handler: str
) -> None:
    """Layers that a snapshotter does not take are unpacked into its directories, as into our own."""
    first = (
        Layer().dir("etc").dir("etc/priv", 0o700, uid=7, gid=8).file("etc/priv/old", "1\n").dir("d").file("d/gone", "1")
    )
    second = Layer().file("etc/priv/new", "2\n").file("d/.wh..wh..opq").file("d/here", "3").file(".wh.tmp")
    layers = [busybox_layer(), first.tar(), second.tar()]
    Pusher(registry).image("plain", "1", Image(layers, {"Cmd": ["sh"]}))
    image = f"{registry}/plain:1"
    command = (
        "stat -c '%a %u %g' /etc/priv; cat /etc/priv/old /etc/priv/new; ls /d; ls -d /tmp 2> /dev/null || echo none"
    )

    pull(stack, image, handler)
    seen = run(stack, image, handler, command, tmp_path / "proxy")
    same = run(stack, image, "runc", command, tmp_path / "own")

    def lines(log: str) -> list[str]:
        return [line.split(" ", 3)[3] for line in log.splitlines()]

    assert seen[0] == same[0] == 0
    assert lines(seen[1]) == lines(same[1])
    assert "700 7 8" in lines(seen[1])
    assert "none" in lines(seen[1])
    assert lines(seen[1]).count("here") == 1
    assert not any("gone" in line for line in lines(seen[1]))
    usage = images(stack).ImageFsInfo(cri.ImageFsInfoRequest(), timeout=30).image_filesystems
    used = {each.fs_id.mountpoint: each.used_bytes.value for each in usage}
    theirs = plain if handler == "plain-runc" else snapshotter
    assert all(used[place] > 100_000 for place in (str(stack.directory / "root/io.bulkhead"), str(theirs.root)))


def test_an_ordinary_layer_upon_lazy_ones(
    stack: Stack, lazy: tuple[str, list[str]], counted: Cuts, registry: str, tmp_path: Path
) -> None:
    """What such a layer leaves implied it has from the lazy ones; an image volume shows a lazy image."""
    below = Layer().dir("etc").dir("etc/priv", 0o700, uid=7, gid=8).file("etc/priv/old", "1\n")
    above = Layer().file("etc/priv/new", "2\n").file("etc/.wh.passwd").tar()
    pusher, lower = Pusher(registry), [busybox_layer(), below.tar()]
    stargz.push(pusher, "below", "1", lower, tmp_path)
    blobs = stargz.push(pusher, "mixed", "1", lower, tmp_path, [above])
    image = f"{counted.address}/mixed:1"
    volume = cri.Mount(container_path="/volume", image=cri.ImageSpec(image=lazy[0]), readonly=True)
    for first in (f"{counted.address}/below:1", lazy[0]):
        pull(stack, first, "lazy-crun")
    # The unpack helper sees mounts that are made later only where the host's are shared, which this one's need not be.
    stack.wait_restarted("image-svc-unpack", stack.kill("image-svc-unpack"))
    pull(stack, image, "lazy-crun")

    command = "stat -c '%a %u %g' /etc/priv; cat /etc/priv/*; ls /etc; cat /volume/data/small"
    code, output = run(stack, image, "lazy-crun", command, tmp_path, mounts=[volume])

    assert code == 0
    assert [blob(stack, each).exists() for each in blobs[1:]] == [False, True]
    assert "700 7 8" in output
    assert "passwd" not in output
    assert "little" in output

    # An opaque root hides all that the lazy layers have; its header stands before busybox's.
    closed = Layer().file(".wh..wh..opq").tar()[: tarfile.BLOCKSIZE] + busybox_layer()
    stargz.push(pusher, "closed", "1", lower, tmp_path, [closed])
    pull(stack, f"{counted.address}/closed:1", "lazy-crun")
    command = "ls -d /etc/priv || echo hidden; cat /etc/passwd"
    code, output = run(stack, f"{counted.address}/closed:1", "lazy-crun", command, tmp_path / "closed")
    assert (code, "hidden" in output, "root" in output) == (0, True, True)


def test_a_lazy_layer_between_ordinary_ones(stack: Stack, counted: Cuts, registry: str, tmp_path: Path) -> None:
    """The ordinary ones are fetched side by side, and what the snapshotter takes between them is not."""
    bulk = Layer().dir("data").file("data/bulk", BULK).file("data/small", "little").tar()
    top = [Layer().file(f"top{number}", f"{number}\n").tar() for number in range(3)]
    beneath = [busybox_layer()]
    blobs = stargz.push(Pusher(registry), "between", "1", [bulk], tmp_path, top, beneath)
    image, before = f"{counted.address}/between:1", counted.received

    pull(stack, image, "lazy-crun")
    code, output = run(stack, image, "lazy-crun", "cat /top? /data/small", tmp_path)

    assert (code, "little" in output) == (0, True)
    assert [blob(stack, each).exists() for each in blobs] == [True, False, True, True, True]
    ingest = stack.directory / "root/io.bulkhead/ingest"
    assert not (ingest / blobs[1].replace(":", "-")).exists()
    assert counted.received - before < len(BULK) / 2


def test_an_encrypted_image(stack: Stack, registry: str, tmp_path: Path) -> None:
    """Its layers go through the decryptor on their way into the snapshotter; without the key nothing is made of it."""
    key, public = stack.directory / "keys" / "node.pem", tmp_path / "public.pem"
    subprocess.run(
        ["openssl", "genrsa", "-out", tmp_path / "node.pem", "2048"], check=True, capture_output=True, timeout=60
    )
    command = ["openssl", "rsa", "-in", str(tmp_path / "node.pem"), "-pubout", "-out", str(public)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    insecure = ["--src-tls-verify=false", "--dest-tls-verify=false", "--encryption-key", f"jwe:{public}"]
    secret = Layer().file("secret", "a word\n").tar()
    Pusher(registry).image("open", "1", Image([busybox_layer(), secret]))
    names = [f"docker://{registry}/open:1", f"docker://{registry}/secret:1"]
    subprocess.run(["skopeo", "copy", *insecure, *names], check=True, capture_output=True, timeout=120)
    image = f"{registry}/secret:1"
    with pytest.raises(grpc.RpcError):
        pull(stack, image, "lazy-runc")

    (tmp_path / "node.pem").rename(key)
    deadline = time.monotonic() + 60
    while True:
        try:
            pull(stack, image, "lazy-runc")
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    code, output = run(stack, image, "lazy-runc", "cat /secret", tmp_path)
    assert (code, "a word" in output) == (0, True)


def test_an_image_of_the_node_is_unpacked_for_a_handler(stack: Stack, registry: str, tmp_path: Path) -> None:
    """A kubelet that does not say for which handler it pulls gets its containers all the same, in both snapshotters."""
    image = f"{registry}/busybox:2"
    pull(stack, image)

    for handler in ("lazy-crun", "runc"):
        code, output = run(stack, image, handler, "echo ran", tmp_path / handler)
        assert (code, "ran" in output) == (0, True)


def test_by_hand(stack: Stack, lazy: tuple[str, list[str]], tmp_path: Path) -> None:
    """A pull by hand for a handler is as lazy as the kubelet's; for an export what it left is fetched."""
    image, blobs = lazy

    def images_command(*arguments: str) -> int:
        verb, *rest = arguments
        command = [str(BIN / "bulkhead"), "images", verb, "--config", str(stack.config), *rest]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    own = blob(stack, blobs[-1])  # other tests' images have the layers below
    remove(stack, image)
    deadline = time.monotonic() + 60
    while own.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)

    assert images_command("pull", "--runtime-handler", "lazy-runc", image) == 0
    assert present(stack, image, "lazy-runc")
    assert not own.exists()
    assert images_command("export", str(tmp_path / "lazy.tar"), image) == 6
    assert images_command("pull", "--no-unpack", image) == 0
    assert images_command("export", str(tmp_path / "lazy.tar"), image) == 0
    assert images_command("rm", image) == 0

    assert images_command("import", "--runtime-handler", "plain-runc", str(tmp_path / "lazy.tar")) == 0
    code, output = run(stack, image, "plain-runc", "cat /data/small", tmp_path)
    assert (code, "little" in output) == (0, True)
    remove(stack, image)


def test_a_dead_snapshotter(
    stack: Stack, snapshotter: Stargz, registry: str, lazy: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Killed -9, it fails what needs it, by name, and nothing else; back again, it serves what it had, too."""
    image = f"{registry}/busybox:3"
    pull(stack, image, "runc")
    pull(stack, lazy[0], "lazy-runc")
    snapshotter.kill()

    for attempt in (lambda: pull(stack, image, "lazy-runc"), lambda: run(stack, image, "lazy-runc", "true", tmp_path)):
        with pytest.raises(grpc.RpcError) as caught:
            attempt()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "snapshotter stargz" in (caught.value.details() or "")
        assert str(snapshotter.socket) in (caught.value.details() or "")
    assert run(stack, image, "runc", "true", tmp_path / "own")[0] == 0

    snapshotter.start()
    pull(stack, image, "lazy-runc")
    assert run(stack, image, "lazy-runc", "true", tmp_path / "proxy")[0] == 0
    assert run(stack, lazy[0], "lazy-crun", "cat /data/small", tmp_path / "lazy")[0] == 0


def test_a_closed_socket(stack: Stack, snapshotter: Stargz, registry: str) -> None:
    """A socket that image-svc's user may not use is named with user and cure."""
    os.chmod(snapshotter.socket, 0o600)
    image_svc = stack.kill("image-svc")
    stack.wait_restarted("image-svc", image_svc)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            pull(stack, f"{registry}/busybox:1", "lazy-runc")
    finally:
        os.chmod(snapshotter.socket, 0o660)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "'bulkhead-image'" in (caught.value.details() or "")
    assert f"chmod g+rw {snapshotter.socket}" in (caught.value.details() or "")


def test_lazy_layers_where_nobody_takes_them(stack: Stack, lazy: tuple[str, list[str]], tmp_path: Path) -> None:
    """In a snapshotter that cannot fetch lazily an eStargz image is fetched and unpacked as any other."""
    image, blobs = lazy
    pull(stack, image, "plain-runc")

    code, output = run(stack, image, "plain-runc", "cat /data/small; sha256sum /data/bulk", tmp_path)

    assert (code, "little" in output, hashlib.sha256(BULK).hexdigest() in output) == (0, True, True)
    assert all(blob(stack, each).exists() for each in blobs)


def test_nothing_is_left(stack: Stack, snapshotter: Stargz, plain: Stargz, registry: str, tmp_path: Path) -> None:
    """What an earlier process was unpacking, and every layer, goes with the last image that needs it."""
    with rpc.channel(str(snapshotter.socket)) as own:
        leftover = snapshots_pb2.PrepareSnapshotRequest(key="extract-0123456789ab-1 sha256:" + "0" * 64)
        SnapshotsStub(own).Prepare(leftover, timeout=30)
    image_svc = stack.kill("image-svc")
    stack.wait_restarted("image-svc", image_svc)
    assert run(stack, f"{registry}/busybox:3", "runc", "true", tmp_path)[0] == 0
    assert kept(snapshotter)

    for image in images(stack).ListImages(cri.ListImagesRequest(), timeout=30).images:
        remove(stack, image.id)

    for each in (snapshotter, plain):
        wait(lambda each=each: not kept(each))  # type: ignore[misc]
        wait(lambda each=each: not list((each.root / "snapshots").iterdir()))  # type: ignore[misc]
    assert not stargz.mounted(snapshotter.directory)
