"""Encrypted images under trouble: layers that are not what was encrypted, a decryptor killed, keys in memory."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support import images
from support.dam import dam
from support.encrypted import Hand, Sealed, entry, eventually, make_keys, push, run, seal, traces_of, tree
from support.images import Layer, compress, digest
from support.memory import found
from support.pods import Pods
from support.stack import BIN, Stack

pytestmark = pytest.mark.root

GZIP = images.MEDIA["oci"]["gzip"]
#: Signs nothing whose name has "unsigned" in it.
VERIFIER = '#!/bin/sh\ncase "$*" in *unsigned*) echo not signed; exit 1;; esac\necho signed\n'


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A scratch directory with the key pairs mykey and policed, and a verifier."""
    with tempfile.TemporaryDirectory(prefix="bhi") as name:
        directory = Path(name)
        directory.chmod(0o755)
        make_keys(directory)
        make_keys(directory, "policed")
        (directory / "verifiers").mkdir()
        (directory / "verifiers" / "check").write_text(VERIFIER)
        (directory / "verifiers" / "check").chmod(0o755)
        yield directory


@pytest.fixture(scope="module")
def hand(registry: str, place: Path) -> Iterator[Hand]:
    """A stack that has the key, and asks the verifier."""
    table = f'[plugins."io.containerd.image-verifier.v1.bindir"]\nbin_dir = "{place}/verifiers"\n'
    public = run("openssl", "pkey", "-in", place / "policed.pem", "-pubout", "-outform", "DER").stdout
    fingerprint = hashlib.sha256(public).hexdigest()
    table += f'[bulkhead.key_policy.api]\nservice_accounts = ["payments/api"]\nkeys = ["{fingerprint}"]\n'
    with Stack(registry, default="crun", number=97, more=table) as stack:
        made = Hand(stack)
        made.give(place / "mykey.pem", place / "policed.pem")
        yield made


class Maker:
    """Makes images of busybox and one more layer, which the test may spoil."""

    def __init__(self, registry: str, place: Path, name: str) -> None:
        self.registry, self.name = registry, name
        self.public = (place / "mykey.pub").read_bytes()
        self.tar = Layer().file("one", name).tar()
        self.blob = compress(self.tar, "gzip")

    def sealed(self, **wrong: object) -> Sealed:
        return seal(self.blob, self.public, GZIP, **wrong)  # type: ignore[arg-type]

    def push(self, top: Sealed, diff_id: str = "") -> str:
        base = images.busybox_layer()
        blob = compress(base, "gzip")
        layers = [(blob, entry(blob, GZIP)), (top.cipher, top.entry)]
        return push(self.registry, self.name, layers, [digest(base), diff_id or digest(self.tar)], Cmd=["cat", "/one"])


def spoil_bytes(maker: Maker) -> str:
    """One bit of the ciphertext differs; the manifest knows it, so that the registry serves what it should."""
    made = maker.sealed()
    cipher = bytes([made.cipher[0] ^ 1]) + made.cipher[1:]
    return maker.push(Sealed(cipher, {**made.entry, "digest": digest(cipher)}, made.key))


SPOILED = {
    "bytes": (spoil_bytes, "MAC"),
    "mac": (lambda maker: maker.push(maker.sealed(mac=b"m" * 32)), "MAC"),
    "private-digest": (lambda maker: maker.push(maker.sealed(digest=digest(b"another"))), "its key was made for"),
    "diff-id": (lambda maker: maker.push(maker.sealed(), digest(b"another")), "the image says"),
    # Large enough that everybody between registry and helper has more to write when the helper has seen enough.
    "no-tar": (lambda maker: maker.push(seal(os.urandom(9_000_000), maker.public, GZIP)), "tar"),
}


def state(hand: Hand) -> tuple[list[str], object]:
    """Return the images, and how many layers are unpacked."""
    listed = hand.stack.image_service().ListImages(cri.ListImagesRequest(), timeout=30).images
    layers = json.loads(hand.images("usage", "--json"))["layers"]["count"]
    directories = len(os.listdir(hand.stack.directory / "root" / "io.bulkhead" / "snapshots"))
    return sorted(name for image in listed for name in image.repo_tags), (layers, directories)


@pytest.mark.parametrize("what", SPOILED)
def test_what_was_not_encrypted_like_that_is_refused(hand: Hand, registry: str, place: Path, what: str) -> None:
    """Wrong bytes, MAC, digest or diff id: the pull fails and says so; no image, layer or directory comes of it."""
    make, reason = SPOILED[what]
    name = make(Maker(registry, place, f"spoiled-{what}"))
    hand.pull(f"{registry}/busybox:1")
    before = state(hand)

    with pytest.raises(grpc.RpcError) as refused:
        hand.pull(name)
    assert reason in str(refused.value.details())
    eventually(lambda: state(hand) == before)
    hand.run("--rm", name, "spoiled", status=125)


def test_a_layer_that_may_not_be_distributed(hand: Hand, registry: str, place: Path) -> None:
    """An encrypted non-distributable layer is in the registry and is pulled, unless it names other servers."""
    maker = Maker(registry, place, "nondistributable")
    top = seal(maker.blob, maker.public, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
    assert hand.run("--rm", hand.pull(maker.push(top)), "nondistributable").stdout == b"nondistributable"
    top.entry["urls"] = ["https://elsewhere.example/layer"]
    with pytest.raises(grpc.RpcError, match="foreign layers"):
        hand.pull(maker.push(top))


def big(registry: str, place: Path, name: str, size: int) -> tuple[str, Sealed]:
    """Push an image of busybox and one encrypted layer of random bytes; return its name and the layer."""
    tar = Layer().file("dense", os.urandom(size)).tar()
    media_type = images.MEDIA["oci"]["plain"]
    top = seal(tar, (place / "mykey.pub").read_bytes(), media_type)
    base = images.busybox_layer()
    blob = compress(base, "gzip")
    layers = [(blob, entry(blob, GZIP)), (top.cipher, top.entry)]
    return push(registry, name, layers, [digest(base), digest(tar)], Cmd=["true"]), top


def test_a_killed_decryptor(hand: Hand, registry: str, place: Path) -> None:
    """kill -9 of the decryptor in mid-layer: the pull begins the layer again from the bytes on disk, and is right."""
    name, top = big(registry, place, "killed", 40_000_000)
    with dam(registry, 25_000_000) as held, ThreadPoolExecutor() as pool:
        pulling = pool.submit(hand.pull, name.replace(registry, held.address))
        assert held.full.wait(60)
        eventually(lambda: found(hand.stack.pid("decryptor"), [top.key]) == 1)
        seen = len(hand.stack.log)
        old = hand.stack.kill("decryptor")
        hand.stack.wait_restarted("decryptor", old)
        held.opened.set()
        image = pulling.result(90)
    assert "the decryptor ended in the middle of a layer; trying again" in hand.stack.log[seen:]
    done = hand.run("--rm", image, "after", "sh", "-c", "wc -c </dense")
    assert done.stdout == b"40000000\n"


def test_a_decryptor_that_does_not_answer(hand: Hand, registry: str, place: Path) -> None:
    """A pull does not wait long for a decryptor that hangs, and names it; once that answers, the pull works."""
    maker = Maker(registry, place, "hanging")
    name = maker.push(maker.sealed())
    pid = hand.stack.pid("decryptor")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(grpc.RpcError, match="decryptor"):
            hand.pull(name)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert time.monotonic() - began < 60
    assert hand.pull(name).startswith("sha256:")


def test_keys_are_in_the_decryptors_memory_alone(hand: Hand, registry: str, place: Path) -> None:
    """In the middle of a pull, and while a container runs with a lent key, no other process has a trace of the private
    key or of the layer's: the same search finds both in the decryptor.
    """
    name, top = big(registry, place, "memory", 30_000_000)
    keys = traces_of((place / "mykey.pem").read_bytes())
    assert hand.stack.process is not None

    def search(more: dict[int, str]) -> None:
        keeper = hand.stack.pid("decryptor")
        processes = tree(hand.stack.process.pid) | more  # type: ignore[union-attr]
        names = " ".join(processes.values())
        for service in ("cri-frontend", "image-svc ", "image-svc-unpack", "stream-svc", "decryptor", "bulkhead"):
            assert service in names, (service, processes)
        del processes[keeper]
        assert found(keeper, keys) > 0
        assert {pid: names for pid, names in processes.items() if found(pid, [*keys, top.key])} == {}

    hand.settle()
    with dam(registry, 20_000_000) as held, ThreadPoolExecutor() as pool:
        there = name.replace(registry, held.address)
        pulling = pool.submit(hand.pull, there)
        assert held.full.wait(60)
        eventually(lambda: found(hand.stack.pid("decryptor"), [top.key]) == 1)
        search({})
        held.opened.set()
        pulling.result(60)
    hand.take_away()
    command = [BIN / "bulkhead", "run", "--config", hand.stack.config, "--rm", "--key", place / "mykey.pem", there]
    words = [str(word) for word in (*command, "memory", "sh", "-c", "echo up; sleep 1000")]
    running = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == b"up\n"
        search({running.pid: "bulkhead run"})
    finally:
        running.terminate()
        running.communicate()
        hand.stack.remove_pods()
        hand.give(place / "mykey.pem", place / "policed.pem")


def test_several_pulls_at_once_with_verification(hand: Hand, registry: str, place: Path) -> None:
    """Six pulls of four encrypted images, one unsigned, at once: the signed ones are right, the other is refused."""
    names = [f"several-{number}" for number in range(3)] + ["several-unsigned"]
    made = {name: Maker(registry, place, name) for name in names}
    pushed = {name: maker.push(maker.sealed()) for name, maker in made.items()}

    def pull(name: str) -> str:
        try:
            return hand.pull(pushed[name])
        except grpc.RpcError as error:
            return str(error.details())

    with ThreadPoolExecutor(6) as pool:
        results = list(zip([*names, *names[:2]], pool.map(pull, [*names, *names[:2]]), strict=True))
    for name, result in results:
        assert result.startswith("SignatureValidationFailed" if name == "several-unsigned" else "sha256:"), result
    for name in names[:3]:
        assert hand.run("--rm", pushed[name], name).stdout.decode() == name


def test_the_service_account_decides(hand: Hand, registry: str, place: Path) -> None:
    """A key for one service account: its namespace may pull, and a container with that account's token runs; others
    are refused, also without a token.
    """
    maker = Maker(registry, place, "policed")
    maker.public = (place / "policed.pub").read_bytes()
    name = maker.push(maker.sealed())

    def pod(namespace: str) -> cri.PodSandboxConfig:
        metadata = cri.PodSandboxMetadata(name="p", namespace=namespace, uid=namespace)
        return cri.PodSandboxConfig(metadata=metadata, log_directory=str(place), linux=cri.LinuxPodSandboxConfig())

    def pull(namespace: str) -> None:
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name), sandbox_config=pod(namespace))
        hand.stack.image_service().PullImage(request, timeout=60)

    with pytest.raises(grpc.RpcError, match="key policy"):
        pull("web")
    pull("payments")
    pods = Pods(hand.stack.runtime_service(), name, place)
    running = pods.run(pod("payments"))

    def create(account: str) -> str:
        mounts = []
        if account:
            token = place / account
            token.mkdir()
            claims = json.dumps({"sub": f"system:serviceaccount:payments:{account}"}).encode()
            body = base64.urlsafe_b64encode(claims).decode().rstrip("=")
            (token / "token").write_text(f"e30.{body}.c2ln")
            there = "/var/run/secrets/kubernetes.io/serviceaccount"
            mounts = [cri.Mount(container_path=there, host_path=str(token), readonly=True)]
        return pods.create(running, pod("payments"), f"c{account}", "true", mounts=mounts)

    for account in ("", "other"):
        with pytest.raises(grpc.RpcError, match="key policy"):
            create(account)
    assert create("api")
    assert "e30." not in hand.stack.log
    hand.stack.remove_pods()


def test_one_audit_line_a_use(hand: Hand, registry: str, place: Path) -> None:
    """Every use of a key is one line with operation, image, pod, layer and verdict, and counts in the metrics."""
    maker = Maker(registry, place, "audited")
    name = maker.push(maker.sealed())
    config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="api", namespace="payments", uid="u"))
    seen = len(hand.stack.log)
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name), sandbox_config=config)
    hand.stack.image_service().PullImage(request, timeout=60)
    hand.run("--rm", "--namespace", "payments", name, "audited")

    def lines() -> list[str]:
        return [line for line in hand.stack.log[seen:].splitlines() if "decryptor.audit" in line]

    eventually(lambda: len(lines()) >= 3)
    time.sleep(0.3)
    operations = [word for line in lines() for word in ("check", "decrypt") if f"operation={word}" in line]
    assert sorted(operations) == ["check", "check", "decrypt"], lines()
    pods = ["payments/api", "payments/api", "payments/audited"]
    assert sorted(pod for line in lines() for pod in set(pods) if pod in line) == pods, lines()
    assert all("fingerprint=" in line and "layer=sha256:" in line for line in lines())
    port = hand.stack.ports["decryptor"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert 'bulkhead_decryptor_unwraps_total{scheme="jwe",verdict="opened"}' in text
