"""The decryptor under `bulkhead up`: keys come and go without a restart, layers survive its death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bulkhead import layers, paths, rpc
from bulkhead.errors import BulkheadError, FailedPrecondition, Unavailable
from bulkhead.proto import keys_pb2, keys_pb2_grpc
from support.keeper import TAR_GZIP, contents, digest_of, encrypted, memory
from support.memory import found
from support.small_stack import SmallStack, small_stack

pytestmark = pytest.mark.root

PLAIN = os.urandom(3_000_000)


class Keys:
    """One RSA key in its formats."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        self.private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        self.public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


@pytest.fixture(scope="module")
def stack(keys: Keys) -> Iterator[SmallStack]:
    """A running stack whose key directory is a mounted Secret."""
    with small_stack() as made:
        swap(made.directory / "keys", "..one", keys.private)
        made.start()
        yield made


def swap(directory: Path, name: str, data: bytes | None) -> None:
    """Change a mounted Secret as the kubelet does; None is a Secret without the key."""
    (directory / name).mkdir()
    if data is not None:
        (directory / name / "node.pem").write_bytes(data)
    (directory / "..new").symlink_to(name)
    os.replace(directory / "..new", directory / "..data")
    link = directory / "node.pem"
    if data is None:
        link.unlink()
    elif not link.is_symlink():
        link.symlink_to("..data/node.pem")


def socket(stack: SmallStack) -> str:
    return str(paths.layer_socket(stack.state))


def seal(stack: SmallStack, keys: Keys) -> tuple[keys_pb2.Layer, bytes]:
    layer = keys_pb2.Layer(digest=digest_of(PLAIN), media_type=TAR_GZIP)
    request = keys_pb2.EncryptRequest(layer=layer, recipients=[keys_pb2.Recipient(scheme="jwe", key=keys.public)])
    with memory(PLAIN) as source, memory() as sink:
        with layers.encrypt(socket(stack), request, source, sink) as work:
            work.started(30)
            result = work.result(keys_pb2.EncryptResult, 30)
        cipher = contents(sink)
    return encrypted(result.annotations, cipher), cipher


def unseal(stack: SmallStack, layer: keys_pb2.Layer, cipher: bytes) -> str:
    request = keys_pb2.DecryptRequest(layer=layer)
    with memory(cipher) as source, memory() as sink, layers.decrypt(socket(stack), request, source, sink) as work:
        work.started(30)
        return work.result(keys_pb2.DecryptResult, 30).digest


def check(stack: SmallStack, layer: keys_pb2.Layer) -> None:
    with rpc.channel(str(paths.service_socket(stack.state, "decryptor"))) as channel:
        request = keys_pb2.CheckRequest(layers=[layer])
        rpc.call(keys_pb2_grpc.KeysStub(channel).Check, request, service="decryptor", timeout=30)


def until(stack: SmallStack, layer: keys_pb2.Layer, *, allowed: bool) -> float:
    """Return the seconds until the layer is opened, or refused."""
    began = time.monotonic()
    while time.monotonic() < began + 60:
        try:
            check(stack, layer)
            answer = True
        except FailedPrecondition:
            answer = False
        if answer is allowed:
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError(stack.log)


def test_a_swapped_secret_counts_without_a_restart(stack: SmallStack, keys: Keys) -> None:
    """A key taken out of a mounted Secret opens nothing any more, though remembered; put back, it does: no restart."""
    layer, _ = seal(stack, keys)
    pid = stack.pid("decryptor")
    check(stack, layer)
    swap(stack.directory / "keys", "..two", None)
    until(stack, layer, allowed=False)
    # A verdict that is remembered is forgotten with its key.
    for _ in range(3):
        with pytest.raises(FailedPrecondition, match="missing private key"):
            check(stack, layer)
    swap(stack.directory / "keys", "..three", keys.private)
    until(stack, layer, allowed=True)

    assert stack.pid("decryptor") == pid
    mounts = [line for line in Path(f"/proc/{pid}/mounts").read_text().splitlines() if "credentials/decryptor " in line]
    assert [line.split()[2:4][0] for line in mounts] == ["ramfs"]
    assert mounts[0].split()[3].startswith("ro,")


def test_a_copy_that_was_lost_half_way_comes_back(stack: SmallStack, keys: Keys) -> None:
    """A courier killed after it took the old copy away, and before the new one was there, leaves no decryptor that no
    further key reaches.
    """
    layer, _ = seal(stack, keys)
    pid = stack.pid("decryptor")
    target = stack.state / "credentials" / "decryptor"
    subprocess.run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", "umount", "--lazy", target], check=True, timeout=30)
    until(stack, layer, allowed=False)
    swap(stack.directory / "keys", "..four", keys.private)
    until(stack, layer, allowed=True)

    assert stack.pid("decryptor") == pid


def test_the_copy_stays_the_decryptors(stack: SmallStack) -> None:
    """However often it was made anew, the copy shows in no other process's mounts, the host's included."""
    pids = [os.getpid(), *(stack.pid(name) for name in ("image-svc", "sandbox-svc", "cri-frontend"))]

    for pid in pids:
        assert str(stack.directory / "state") not in Path(f"/proc/{pid}/mounts").read_text().replace("netns", "")


def test_image_svcs_user_has_layers_decrypted(stack: SmallStack, keys: Keys) -> None:
    """image-svc's user reaches the socket and is served; the frontend's, in the same group, is turned away."""
    layer, cipher = seal(stack, keys)
    (stack.directory / "request").write_bytes(keys_pb2.DecryptRequest(layer=layer).SerializeToString())
    (stack.directory / "cipher").write_bytes(cipher)

    assert call_as(stack, "bulkhead-image") == f"ok {digest_of(PLAIN)}"
    assert call_as(stack, "bulkhead-frontend").startswith("PERMISSION_DENIED")


_CALLER = """
import grp, os, pwd, sys
from bulkhead import layers
from bulkhead.errors import BulkheadError
from bulkhead.proto import keys_pb2
path, directory, name = sys.argv[1:]
request = keys_pb2.DecryptRequest.FromString(open(f"{directory}/request", "rb").read())
source, sink = os.open(f"{directory}/cipher", os.O_RDONLY), os.memfd_create("x")
user = pwd.getpwnam(name)
os.setgroups([grp.getgrnam("bulkhead").gr_gid])
os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
try:
    with layers.decrypt(path, request, source, sink) as work:
        work.started(30)
        print("ok", work.result(keys_pb2.DecryptResult, 20).digest)
except BulkheadError as error:
    print(error.name, error)
"""


def call_as(stack: SmallStack, user: str) -> str:
    command = [sys.executable, "-c", _CALLER, socket(stack), str(stack.directory), user]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_a_killed_decryptor_is_a_clean_end(stack: SmallStack, keys: Keys) -> None:
    """Killed in mid-layer: the caller is told so at once, the pipe ends, and the next time the layer comes out."""
    layer, cipher = seal(stack, keys)
    (read, write), (out, sink) = os.pipe(), os.pipe()
    with layers.decrypt(socket(stack), keys_pb2.DecryptRequest(layer=layer), read, sink) as work:
        os.close(read)
        os.close(sink)
        work.started(30)
        os.write(write, cipher[:50_000])
        assert os.read(out, 1000) == PLAIN[:1000]
        os.kill(stack.pid("decryptor"), signal.SIGKILL)
        with pytest.raises(Unavailable, match="ended in the middle of a layer"):
            work.result(keys_pb2.DecryptResult, 30)
    while os.read(out, 65536):
        pass
    os.close(out)
    os.close(write)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert unseal(stack, layer, cipher) == digest_of(PLAIN)
            return
        except BulkheadError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_layer_keys_stay_in_the_decryptor(stack: SmallStack, keys: Keys) -> None:
    """In mid-layer its key is in the decryptor's memory, and in no other process's, the helper's included."""
    from decryptor.deadline import Deadline
    from decryptor.options import PUBLIC, Private, to_annotation
    from decryptor.tools import Tools
    from decryptor.wrap import annotations

    secret = os.urandom(32)
    payload = Private(secret, b"n" * 16, "").to_json()
    recipient = keys_pb2.Recipient(scheme="jwe", key=keys.public)
    wrapped = annotations(payload, [recipient], Tools({}, None), Deadline(60, "wrapping"))
    layer = encrypted({**wrapped, PUBLIC: to_annotation(b"m" * 32)}, b"")
    (read, write), (out, sink) = os.pipe(), os.pipe()
    pid = stack.pid("decryptor")
    helper = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    others = [stack.pid(name) for name in ("cri-frontend", "image-svc", "stream-svc", "sandbox-svc")]
    traces = [secret, payload, keys.private.splitlines()[10]]
    with layers.decrypt(socket(stack), keys_pb2.DecryptRequest(layer=layer), read, sink) as work:
        work.started(30)
        os.write(write, b"x" * 100_000)
        os.read(out, 1000)

        # Of the others what is left is chance: text that was read, and memory that was freed.
        assert found(pid, [secret]) == 1
        assert {other: found(other, traces) for other in (helper, *others)} == dict.fromkeys((helper, *others), 0)
    for fd in (read, write, out, sink):
        os.close(fd)


def test_what_the_filter_forbids(stack: SmallStack) -> None:
    """Every thread of the decryptor is under its filter; the helper, which starts programs, is under none."""
    pid = stack.pid("decryptor")
    helper = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    threads = [task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]

    assert all("\nSeccomp:\t2" in status for status in threads)
    assert "\nSeccomp:\t0" in Path(f"/proc/{helper}/status").read_text()
    assert "\nNoNewPrivs:\t1" in Path(f"/proc/{helper}/status").read_text()
