"""`[stream_processors]` on a running stack: imgcrypt's ctd-decoder as a foreign program, and programs of one's own."""

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support import images
from support.encrypted import Hand, entry, eventually, make_keys, push, seal
from support.images import Layer, digest
from support.stack import Stack

pytestmark = pytest.mark.root

TAR, GZIP = images.MEDIA["oci"]["plain"], images.MEDIA["oci"]["gzip"]
OWN = "application/vnd.example.layer.v1"
#: `foreign` is ctd-decoder under another name; `slow` never ends, and says where it is.
_TABLES = """[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
accepts = ["{gzip}+encrypted"]
returns = "{gzip}"
path = "{place}/foreign"
args = ["--decryption-keys-path", "{place}/keys"]
env = ["OCICRYPT_KEYPROVIDER_CONFIG={place}/none"]
[stream_processors.base64]
accepts = ["{own}.tar+base64"]
returns = "{own}.tar+outer"
path = "base64"
args = ["-d"]
[stream_processors.outer]
accepts = ["{own}.tar+outer"]
returns = "{tar}"
path = "sh"
args = ["-c", "test \\"$STREAM_PROCESSOR_MEDIATYPE\\" = {own}.tar+outer && test \\"$OWN\\" = 1 && tail -c +4"]
env = ["OWN=1"]
[stream_processors.failing]
accepts = ["{own}.tar+failing"]
returns = "{tar}"
path = "sh"
args = ["-c", "cat; echo no such luck >&2; exit 9"]
[stream_processors.slow]
accepts = ["{own}.tar+slow"]
returns = "{tar}"
path = "sh"
args = ["-c", "id -u >{place}/calls/uid; echo $$ >{place}/calls/pid; exec sleep 1000"]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A scratch directory with the decoder, its keys, and a place that programs may write to."""
    directory = Path(tempfile.mkdtemp(prefix="bhp"))
    directory.chmod(0o755)
    make_keys(directory)
    shutil.copy(build("imgcrypt")["ctd-decoder"], directory / "foreign")
    for name in ("keys", "calls"):
        (directory / name).mkdir()
    (directory / "calls").chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def hand(registry: str, place: Path) -> Iterator[Hand]:
    """A stack with those programs; its decryptor has no key."""
    more = _TABLES.format(gzip=GZIP, tar=TAR, own=OWN, place=place)
    with Stack(registry, default="crun", number=98, more=more) as stack:
        yield Hand(stack)


def image(registry: str, name: str, blob: bytes, kind: str | dict[str, object], tar: bytes) -> str:
    """Push an image of busybox and one more layer."""
    base = images.busybox_layer()
    below = images.compress(base, "gzip")
    described = kind if isinstance(kind, dict) else entry(blob, kind)
    layers = [(below, entry(below, GZIP)), (blob, described)]
    return push(registry, name, layers, [digest(base), digest(tar)], Cmd=["cat", "/one"])


def refusal(hand: Hand, name: str) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        hand.pull(name)
    return str(refused.value.details())


def test_imgcrypts_decoder_as_a_foreign_program(hand: Hand, registry: str, place: Path) -> None:
    """ctd-decoder under another name decrypts what the decryptor has no key for; without its key its words are told."""
    tar = Layer().file("one", "foreign").tar()
    top = seal(images.compress(tar, "gzip"), (place / "mykey.pub").read_bytes(), GZIP)
    name = image(registry, "foreign", top.cipher, top.entry, tar)

    told = refusal(hand, name)
    assert "stream_processors.'io.containerd.ocicrypt.decoder.v1.tar.gzip'" in told
    assert "missing private key needed for decryption" in told
    shutil.copy(place / "mykey.pem", place / "keys" / "mykey.pem")
    (place / "keys" / "mykey.pem").chmod(0o644)
    hand.pull(name)
    assert hand.run("--rm", name, "foreign").stdout == b"foreign"


def test_a_chain_of_programs(hand: Hand, registry: str) -> None:
    """A type that only a program accepts goes through it, and what it returns through the next, until it is a tar."""
    tar = Layer().file("one", "chained").tar()
    name = image(registry, "chained", base64.b64encode(b"xyz" + tar), f"{OWN}.tar+base64", tar)

    hand.pull(name)
    assert hand.run("--rm", name, "chained").stdout == b"chained"


def test_a_type_nobody_accepts(hand: Hand, registry: str) -> None:
    """A media type that no program accepts is refused by its name."""
    tar = Layer().file("one", "unknown").tar()
    assert f"unknown layer media type '{OWN}.tar+lz4'" in refusal(
        hand, image(registry, "u", tar, f"{OWN}.tar+lz4", tar)
    )


def test_a_failing_program_fails_the_layer(hand: Hand, registry: str) -> None:
    """All the right bytes do not help a program that ends with a status other than 0."""
    tar = Layer().file("one", "failing").tar()
    told = refusal(hand, image(registry, "failing", tar, f"{OWN}.tar+failing", tar))
    assert "stream_processors.'failing' (sh) failed with status 9: no such luck" in told


def test_a_program_ends_with_its_pull(hand: Hand, registry: str, place: Path) -> None:
    """Programs run as image-svc's user, and are killed when whoever wanted the image hangs up."""
    tar = Layer().file("one", "slow").tar()
    name = image(registry, "slow", tar, f"{OWN}.tar+slow", tar)
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    call = hand.stack.image_service().PullImage.future(request)
    pid = place / "calls" / "pid"
    eventually(lambda: pid.exists() and bool(pid.read_text()))

    owner = os.stat(f"/proc/{hand.stack.pid('image-svc')}").st_uid
    assert (place / "calls" / "uid").read_text() == f"{owner}\n"
    assert owner != 0
    call.cancel()
    eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())
