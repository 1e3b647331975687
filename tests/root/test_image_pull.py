"""image-svc and its unpack helper as they run on a node, over Debian's docker-registry."""

import base64
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.fake_registry import Handler, fake_registry
from support.image_service import BIN, Service, service
from support.images import Image, Layer, Pusher, digest
from support.registry import registry as run_registry

pytestmark = pytest.mark.root

#: What `htpasswd -nbB tester secret-word` prints.
HTPASSWD = "tester:$2y$04$V2S24DS8FNHr.5YZyTiIdeBMFA3GtT0Yn0A2AEPKQ1AtGTh.f9kYi\n"


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may search."""
    directory = Path(tempfile.mkdtemp(prefix="bhimg"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def node(place: Path) -> Iterator[Service]:
    """Run a service over a scratch directory."""
    with service(place) as made:
        yield made


def test_pull_prepare_remove(node: Service, registry: str) -> None:
    """An image is pulled, resolved, given a writable snapshot, and goes again with its last user."""
    name = f"{registry}/busybox:1"

    image_id = node.pull(name)

    assert node.names() == [name]
    resolved = node.run.Resolve(images_pb2.ResolveRequest(image=name), timeout=30)
    assert (resolved.image_id, resolved.encrypted) == (image_id, False)
    assert digest(resolved.config_json) == image_id
    request = images_pb2.PrepareRequest(key="c1", image_id=image_id, manifest_digest=resolved.manifest_digest)
    prepared = node.run.Prepare(request, timeout=30)
    assert node.run.Prepare(request, timeout=30) == prepared
    (mount,) = prepared.mounts
    lower = Path(next(o for o in mount.options if o.startswith("lowerdir=")).partition("=")[2].partition(":")[0])
    assert (lower / "bin/busybox").stat().st_uid == 0
    assert Path(prepared.upper_dir).is_dir()
    assert Path(f"/proc/{node.process.pid}/status").read_text().count("CapEff:\t0000000000000000") == 1

    for _ in range(2):
        node.cri.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)), timeout=60)
    assert node.names() == []
    assert (lower / "bin/busybox").exists()
    assert node.run.Retain(images_pb2.RetainRequest(keys=["c1", "lost"]), timeout=30).missing == ["lost"]
    node.run.Retain(images_pb2.RetainRequest(), timeout=30)
    deadline = time.monotonic() + 60
    while lower.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lower.exists()
    assert not Path(prepared.upper_dir).exists()


def test_formats(node: Service, registry: str) -> None:
    """gzip, zstd and Docker schema 2 images are the same file system, pulled side by side."""
    first = node.pull(f"{registry}/busybox:1")
    calls = [
        node.cri.PullImage.future(
            cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/busybox:{tag}")), timeout=60
        )
        for tag in "123"
    ]

    assert {call.result().image_ref for call in calls} == {first}
    (image,) = node.cri.ListImages(cri.ListImagesRequest(), timeout=30).images
    assert len(image.repo_tags) == 3
    info = node.cri.ImageFsInfo(cri.ImageFsInfoRequest(), timeout=30)
    assert info.image_filesystems[0].used_bytes.value > image.size
    status = node.cri.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=first), verbose=True), timeout=60)
    assert '"imageSpec"' in status.info["info"]


@pytest.fixture
def private(tmp_path_factory: pytest.TempPathFactory, own_network: None) -> Iterator[str]:
    """Run a registry that asks for a name and a password, holding app:1."""
    directory = tmp_path_factory.mktemp("private")
    (directory / "htpasswd").write_text(HTPASSWD)
    with run_registry(directory, directory / "htpasswd") as address:
        basic = "Basic " + base64.b64encode(b"tester:secret-word").decode()
        Pusher(address, basic).image("app", "1", Image([Layer().file("a", "b").tar()]))
        yield address


def test_basic_auth(node: Service, private: str) -> None:
    """A private registry wants the right password, and says so; the password is in no log."""
    name = f"{private}/app:1"
    for auth in ({}, {"username": "tester", "password": "wrong-word"}):
        with pytest.raises(grpc.RpcError) as caught:
            node.pull(name, **auth)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert name in (caught.value.details() or "")
        assert "401" in (caught.value.details() or "")
    assert node.names() == []

    node.pull(name, username="tester", password="secret-word")
    node.pull(name, auth=base64.b64encode(b"tester:secret-word").decode())

    assert node.names() == [name]
    assert "secret-word" not in node.log
    assert "wrong-word" not in node.log


def test_mirror(node: Service, registry: str) -> None:
    """A hosts.toml mirror serves an image under the upstream's name; a mistake in the file is told."""
    directory = node.directory / "certs.d" / "upstream.invalid"
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n')

    node.pull("upstream.invalid/busybox:1")

    assert node.names() == ["upstream.invalid/busybox:1"]
    (directory / "hosts.toml").write_text('[host."x"]\ncapabilities = "pull"\n')
    with pytest.raises(grpc.RpcError) as caught:
        node.pull("upstream.invalid/busybox:2")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert f"{directory}/hosts.toml" in (caught.value.details() or "")
    assert "line 2" in (caught.value.details() or "")


def test_hostile_layer(node: Service, registry: str) -> None:
    """A layer that climbs out of its root is InvalidArgument that names the entry; nothing is listed."""
    layer = Layer().file("../../../../tmp/bhimg-escaped", "x").tar()
    Pusher(registry).image("hostile", "1", Image([layer]))

    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/hostile:1")

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "bhimg-escaped" in (caught.value.details() or "")
    assert node.names() == []


def test_killed_and_started_again(place: Path, registry: str) -> None:
    """After kill -9 everything is listed again and what a crash left is cleared away."""
    with service(place) as first:
        first.pull(f"{registry}/busybox:1")
        first.process.kill()
        first.process.wait(30)
    stray = place / "root/io.bulkhead/blobs/sha256" / ("0" * 64)
    stray.write_bytes(b"stray")
    with service(place) as second:
        second.pull(f"{registry}/pause:1")
        assert second.names() == [f"{registry}/busybox:1", f"{registry}/pause:1"]
        assert not stray.exists()
        resolved = second.run.Resolve(images_pb2.ResolveRequest(image=f"{registry}/busybox:1"), timeout=30)
        prepared = second.run.Prepare(images_pb2.PrepareRequest(key="c", image_id=resolved.image_id), timeout=30)
        assert prepared.mounts


def test_killed_in_mid_pull(place: Path, own_network: None) -> None:
    """After kill -9 in the middle of a blob the next pull asks for the rest of it only."""
    image = Image([Layer().file("data", os.urandom(3 << 20)).tar()], compression="plain")
    blob = image.blobs()[1][0]
    with fake_registry() as fake:
        fake.push("app", "1", image)
        name, killed = f"{fake.address}/app:1", threading.Event()

        def stop_halfway(handler: Handler) -> bool:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(blob)))
            handler.end_headers()
            handler.wfile.write(blob[: len(blob) // 2])
            killed.wait(90)
            return handler.break_off()

        fake.once(digest(blob), stop_halfway)
        with service(place) as first:
            request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
            call = first.cri.PullImage.future(request, timeout=60, wait_for_ready=True)
            partial = place / "root/io.bulkhead/ingest" / digest(blob).replace(":", "-")
            deadline = time.monotonic() + 60
            while not (partial.exists() and partial.stat().st_size > 1 << 20) and time.monotonic() < deadline:
                time.sleep(0.02)
            first.process.kill()
            first.process.wait(30)
            killed.set()
            assert call.exception(timeout=30)
            have = partial.stat().st_size
        with service(place) as second:
            second.pull(name)
            assert second.names() == [name]

    asked = fake.asked(digest(blob))
    assert [each.headers.get("range") for each in asked] == [None, f"bytes={have}-"]


def test_second_service_is_refused(node: Service, registry: str) -> None:
    """Two services never share a store."""
    node.pull(f"{registry}/pause:1")
    config = node.directory / "config.toml"

    second = subprocess.run([BIN / "image-svc", "--config", config], capture_output=True, timeout=60, check=False)

    assert second.returncode == 1
    assert b"another image-svc uses this store" in second.stderr


@contextmanager
def decryptor(directory: Path) -> Iterator[None]:
    """Run the decryptor beside a service."""
    with (directory / "decryptor.log").open("ab") as log:
        command = [BIN / "decryptor", "--config", directory / "config.toml"]
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while b" serving on " not in (directory / "decryptor.log").read_bytes():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def locked(registry: str, place: Path) -> str:
    """Push busybox:1 encrypted for a fresh key and return its name; the key is at `place`/private.pem."""
    private, public = place / "private.pem", place / "public.pem"
    subprocess.run(["openssl", "genrsa", "-out", private, "2048"], check=True, capture_output=True, timeout=60)
    subprocess.run(["openssl", "rsa", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    copy = ["skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", f"--encryption-key=jwe:{public}"]
    source, target = f"docker://{registry}/busybox:2", f"docker://{registry}/locked:1"
    subprocess.run([*copy, source, target], check=True, capture_output=True, timeout=60)
    return f"{registry}/locked:1"


def test_encrypted_image_without_a_key(node: Service, registry: str, locked: str) -> None:
    """An encrypted layer is refused with its digest and scheme, also when its plain twin lies on disk."""
    node.pull(f"{registry}/busybox:2")
    with decryptor(node.directory), pytest.raises(grpc.RpcError) as caught:
        node.pull(locked)

    details = caught.value.details() or ""
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "sha256:" in details
    assert "jwe" in details
    assert node.names() == [f"{registry}/busybox:2"]


def test_encrypted_image_without_the_decryptor(node: Service, locked: str) -> None:
    """Without the decryptor nothing encrypted is pulled; the error names the service."""
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(locked)

    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "decryptor" in (caught.value.details() or "")
