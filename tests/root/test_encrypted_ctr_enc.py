"""An image that imgcrypt's own client encrypted through a stock containerd and pushed, pulled and run here."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.containerd import Containerd
from support.images import Image, Layer, Pusher, busybox_layer
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

#: Debian's, of the line that imgcrypt 1.1 belongs to.
CONTAINERD = Path("/usr/bin/containerd")


def run(*command: object) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two RSA keys, the second with a certificate."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("one", "two"):
        run("openssl", "genrsa", "-out", place / f"{name}.pem", "2048")
    run("openssl", "rsa", "-in", place / "one.pem", "-pubout", "-out", place / "one.pub")
    subject = ("-subj", "/CN=ctr-enc")
    run("openssl", "req", "-x509", "-new", "-key", place / "two.pem", *subject, "-out", place / "two.crt")
    return place


@pytest.fixture(scope="module")
def image(registry: str, keys: Path) -> str:
    """An image of two layers, both encrypted by ctr-enc for a public key and for a certificate."""
    layers = [busybox_layer(), Layer().file("greeting", b"from the second layer").tar()]
    Pusher(registry).image("greeter", "1", Image(layers, {"Cmd": ["sh"]}))
    plain, made = f"{registry}/greeter:1", f"{registry}/greeter:encrypted"
    with Containerd(registry, str(CONTAINERD), str(CONTAINERD.parent), number=84) as peer:
        ctr = (build("imgcrypt")["ctr-enc"], "--address", peer.address, "images")
        run(*ctr, "pull", "--plain-http", plain)
        recipients = ("--recipient", f"jwe:{keys}/one.pub", "--recipient", f"pkcs7:{keys}/two.crt")
        run(*ctr, "encrypt", *recipients, plain, made)
        shown = run(*ctr, "layerinfo", made)
        assert shown.count("[jwe]") == shown.count("[pkcs7]") == len(layers)
        run(*ctr, "push", "--plain-http", made)
    return made


@pytest.fixture(scope="module", params=[("one.pem",), ("two.pem", "two.crt")], ids=["jwe", "pkcs7"])
def stack(registry: str, image: str, keys: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack with the keys of one of the two recipients."""
    made = Stack(registry, number=85)
    made.write_config()
    for name in request.param:
        (made.directory / "keys" / name).write_bytes((keys / name).read_bytes())
    with made:
        yield made


def test_pulled_and_run(stack: Stack, image: str, tmp_path: Path) -> None:
    """Either recipient's key opens both layers."""
    wanted = cri.PullImageRequest(image=cri.ImageSpec(image=image))
    pods = Pods(stack.runtime_service(), stack.image_service().PullImage(wanted, timeout=60).image_ref, tmp_path)
    config = pods.config("ctr-enc")
    pod = pods.run(config)
    container = pods.start(pod, config, "greet", "cat /greeting")

    assert pods.wait_exited(container).exit_code == 0
    assert "from the second layer" in (tmp_path / "greet.log").read_text()
