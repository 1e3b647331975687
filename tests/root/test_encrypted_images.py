"""Images that others encrypted, pulled and run: the key in the decryptor decides each time."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSA key with its public half and certificate, made by openssl as the flow's users do."""
    place = tmp_path_factory.mktemp("keys")
    run("openssl", "genrsa", "-out", str(place / "mykey.pem"), "2048")
    run("openssl", "rsa", "-in", str(place / "mykey.pem"), "-pubout", "-out", str(place / "mypubkey.pem"))
    subject = ("-subj", "/CN=bulkhead-test")
    run("openssl", "req", "-x509", "-new", "-key", str(place / "mykey.pem"), *subject, "-out", str(place / "cert.pem"))
    return place


@pytest.fixture(scope="module")
def encrypted(registry: str, keys: Path) -> dict[str, str]:
    """busybox encrypted by skopeo for the key, by scheme."""
    made = {}
    for scheme, recipient in (("jwe", "jwe:" + str(keys / "mypubkey.pem")), ("pkcs7", f"pkcs7:{keys / 'cert.pem'}")):
        made[scheme] = f"{registry}/busybox:{scheme}"
        source, target = f"docker://{registry}/busybox:1", f"docker://{made[scheme]}"
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        run("skopeo", "copy", *tls, "--encryption-key", recipient, source, target)
    return made


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """A stack that begins without any key."""
    with Stack(registry, default="crun", number=93) as running:
        yield running


def pull(stack: Stack, name: str) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    return str(stack.image_service().PullImage(request, timeout=60).image_ref)


def pull_when_keys_are_read(stack: Stack, name: str, seconds: float = 60) -> str:
    """Pull once the decryptor has seen that its directory changed."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return pull(stack, name)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def refused_in_the_end(act: Callable[[], object], seconds: float = 60) -> str:
    """Repeat a call until it is refused and return why: a verdict is remembered for some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            act()
        except grpc.RpcError as error:
            return str(error.details())
        time.sleep(0.5)
    raise AssertionError("never refused")


def give(stack: Stack, keys: Path) -> None:
    for name in ("mykey.pem", "cert.pem"):
        (stack.directory / "keys" / name).write_bytes((keys / name).read_bytes())


def take_away(stack: Stack) -> None:
    for path in (stack.directory / "keys").iterdir():
        path.unlink()


def test_no_key_no_pull(stack: Stack, encrypted: dict[str, str]) -> None:
    """Without a key a pull is refused, and says which layer it is about and which scheme that offers."""
    with pytest.raises(grpc.RpcError) as refused:
        pull(stack, encrypted["jwe"])

    text = str(refused.value.details())
    assert "you are not authorized to use this image" in text
    assert "jwe" in text
    assert "layer sha256:" in text


@pytest.mark.parametrize("scheme", ["jwe", "pkcs7"])
def test_pulled_and_run(stack: Stack, encrypted: dict[str, str], keys: Path, scheme: str, tmp_path: Path) -> None:
    """With the key in its directory the image is pulled and runs; no restart is needed for the key to count."""
    give(stack, keys)
    image = pull_when_keys_are_read(stack, encrypted[scheme])
    pods = Pods(stack.runtime_service(), image, tmp_path)
    config = pods.config(f"enc-{scheme}")
    pod = pods.run(config)

    container = pods.start(pod, config, "hello", "echo Hello World!")
    pods.wait_exited(container)

    assert "Hello World!" in (tmp_path / "hello.log").read_text()


def test_a_key_taken_away_stops_the_next_container(
    stack: Stack, encrypted: dict[str, str], keys: Path, registry: str, tmp_path: Path
) -> None:
    """With the key gone a container of the encrypted image is refused though its layers are here, by name and by id;
    one of the plain image with the same layers and the same id is not.
    """
    give(stack, keys)
    image = pull_when_keys_are_read(stack, encrypted["jwe"])
    assert pull(stack, f"{registry}/busybox:1") == image
    pods = Pods(stack.runtime_service(), image, tmp_path)
    config = pods.config("enc-revoked")
    pod = pods.run(config)

    take_away(stack)

    def create(name: str, reference: str, specified: str = "") -> str:
        spec = cri.ImageSpec(image=reference, user_specified_image=specified)
        return pods.create(pod, config, name, "true", image=spec)

    refusal = refused_in_the_end(lambda: create(f"c{time.monotonic_ns()}", encrypted["jwe"]))
    assert "you are not authorized to use this image" in refusal
    with pytest.raises(grpc.RpcError, match="not authorized"):
        create("by-id", image)
    with pytest.raises(grpc.RpcError, match="not authorized"):
        create("as-the-kubelet", image, encrypted["pkcs7"])
    assert create("plain", image, f"{registry}/busybox:1")
