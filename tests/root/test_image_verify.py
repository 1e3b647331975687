"""Image verifiers: run as containerd runs them, by a user without rights, at every pull and for every container."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.containerd import Containerd
from support.image_service import USER, Service, service
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

#: Writes a line of JSON of how it was called, then does what the file `verdict` beside it says.
VERIFIER = r"""#!/bin/sh
where=$(dirname "$0")/..
printf '{"args": "%s", "stdin": %s, "uid": %s, "capabilities": "%s"}\n' \
    "$*" "$(cat)" "$(id -u)" "$(sed -n 's/CapEff:\t//p' /proc/self/status)" >> "$where/calls/log"
. "$where/verdict"
"""
TABLE = '[plugins."io.containerd.image-verifier.v1.bindir"]\nbin_dir = "{}"\nper_verifier_timeout = "{}"\n'


class Verifiers:
    """A directory with one verifier, and what it wrote."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        (directory / "calls").mkdir()
        (directory / "calls").chmod(0o777)
        (self.bin / "check").write_text(VERIFIER)
        (self.bin / "check").chmod(0o755)
        self.say("echo signed; exit 0")

    def say(self, verdict: str) -> None:
        """Have it end like that from now on."""
        (self.directory / "verdict").write_text(f"{verdict}\n")

    @property
    def calls(self) -> list[dict[str, object]]:
        """How it was called."""
        log = self.directory / "calls" / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may search."""
    directory = Path(tempfile.mkdtemp(prefix="bhver"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def verifiers(place: Path) -> Verifiers:
    """Set up a verifier that lets everything pass."""
    (place / "verify").mkdir()
    return Verifiers(place / "verify")


@pytest.fixture
def node(place: Path, verifiers: Verifiers, request: pytest.FixtureRequest) -> Iterator[Service]:
    """Run image-svc with the verifier, which has the parameter's time, or all that it needs on a busy machine."""
    (place / "node").mkdir()
    with service(place / "node", more=TABLE.format(verifiers.bin, getattr(request, "param", "60s"))) as made:
        yield made


def prepare(node: Service, name: str, key: str) -> None:
    """Make a container's snapshot, as sandbox-svc does."""
    resolved = node.run.Resolve(images_pb2.ResolveRequest(image=name), timeout=30)
    request = images_pb2.PrepareRequest(key=key, image_id=resolved.image_id, manifest_digest=resolved.manifest_digest)
    node.run.Prepare(request, timeout=60)


def refused(error: grpc.RpcError) -> str:
    """Return the words of a refusal, which the kubelet knows by its code and its first word."""
    assert error.code() is grpc.StatusCode.UNKNOWN
    text = error.details() or ""
    assert text.startswith("SignatureValidationFailed: ")
    return text


def test_called_as_by_containerd(node: Service, verifiers: Verifiers, registry: str) -> None:
    """The verifier sees the same arguments and the same descriptor as under containerd 2.x, without rights here."""
    name = f"{registry}/busybox:1"
    node.pull(name)
    (own,) = verifiers.calls
    binary = build("containerd")["containerd"]
    table = TABLE.format(verifiers.bin, "60s")
    with Containerd(registry, str(binary), str(binary.parent), number=93, more=table) as peer:
        peer.image_service().PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=60)
    (_, theirs) = verifiers.calls

    assert own["args"] == theirs["args"]
    assert own["stdin"] == theirs["stdin"]
    assert (own["uid"], own["capabilities"]) == (USER.pw_uid, "0" * 16)


def test_every_pull_and_every_container(node: Service, verifiers: Verifiers, registry: str) -> None:
    """Pulls ask each time; containers ask once the verifiers changed, and a refusal then stops the next one."""
    name = f"{registry}/busybox:1"
    node.pull(name)
    node.pull(name)
    assert len(verifiers.calls) == 2
    prepare(node, name, "c1")
    assert len(verifiers.calls) == 2

    verifiers.say("echo revoked; exit 7")
    (verifiers.bin / "check").touch()
    with pytest.raises(grpc.RpcError) as caught:
        prepare(node, name, "c2")
    assert "verifier check rejected image" in refused(caught.value)
    assert "(exit code 7): revoked" in refused(caught.value)
    with pytest.raises(grpc.RpcError) as again:
        node.pull(name)
    assert name in refused(again.value)
    verifiers.say("exit 0")
    prepare(node, name, "c2")


def test_refused_before_anything_is_unpacked(node: Service, verifiers: Verifiers, registry: str) -> None:
    """An image that is refused leaves no layer, is not listed, and may pass later."""
    verifiers.say("exit 1")

    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/busybox:1")

    refused(caught.value)
    assert node.names() == []
    assert not [path for path in (node.directory / "root/io.bulkhead/snapshots").iterdir() if path.name.isdigit()]
    verifiers.say("exit 0")
    node.pull(f"{registry}/busybox:1")


@pytest.mark.parametrize("node", ["2s"], indirect=True)
def test_verifier_that_hangs(node: Service, verifiers: Verifiers, registry: str) -> None:
    """A verifier that does not end is killed with all that it started, and its image does not pass."""
    verifiers.say("sleep 61 & echo $! > $where/calls/child; sleep 62")
    began = time.monotonic()

    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/busybox:1")

    assert "did not finish within 2 s" in refused(caught.value)
    assert time.monotonic() - began < 40
    child = Path("/proc") / (verifiers.directory / "calls/child").read_text().strip()
    deadline = time.monotonic() + 60
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: Path) -> bool:
    """Tell whether a process of /proc is there and has not ended."""
    try:
        return "(zombie)" not in (process / "status").read_text()
    except OSError:
        return False


def test_verifier_that_talks_without_end(node: Service, verifiers: Verifiers, registry: str) -> None:
    """A verifier that writes without end is killed, and one that writes much is cut."""
    verifiers.say("yes")
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/busybox:1")
    assert "wrote more than" in refused(caught.value)

    verifiers.say("head -c 100000 /dev/zero | tr '\\0' x; exit 1")
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/busybox:1")
    assert "(exit code 1): xxx" in refused(caught.value)


def test_directory_that_may_not_be_read(node: Service, verifiers: Verifiers, registry: str) -> None:
    """Without a look at the verifiers nothing passes; without the directory everything does."""
    verifiers.bin.chmod(0o700)
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(f"{registry}/busybox:1")
    assert f"{verifiers.bin}: Permission denied" in refused(caught.value)

    shutil.rmtree(verifiers.bin)
    node.pull(f"{registry}/busybox:1")


def test_revoked_image_makes_no_further_container(verifiers: Verifiers, registry: str) -> None:
    """In a whole stack: what runs goes on, a new container of an image that was revoked meanwhile is refused."""
    with Stack(registry, number=92, more=TABLE.format(verifiers.bin, "60s")) as stack:
        image = f"{registry}/busybox:1"
        pull = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        found = stack.image_service().PullImage(pull, timeout=60).image_ref
        pods = Pods(stack.runtime_service(), found, stack.directory / "logs")
        config = pods.config("verified")
        pod = pods.run(config)
        first = pods.start(pod, config, "first", "sleep 100")

        verifiers.say("echo revoked; exit 1")
        (verifiers.bin / "check").touch()
        with pytest.raises(grpc.RpcError) as caught:
            pods.create(pod, config, "second", "true")
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert f"SignatureValidationFailed: verifier check rejected image {image} " in (caught.value.details() or "")
        with pytest.raises(grpc.RpcError) as again:
            stack.image_service().PullImage(pull, timeout=60)
        assert "revoked" in refused(again.value)
        assert pods.status(first).state == cri.CONTAINER_RUNNING
