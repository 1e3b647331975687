"""Encrypted images between Bulkhead, skopeo and imgcrypt's ctr-enc, and what the command line makes of them."""

import gzip
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from conformance.build import build
from support.containerd import Containerd
from support.encrypted import Hand, box, make_keys, manifest, run, skopeo
from support.stack import Stack
from support.token import PIN, Token

pytestmark = pytest.mark.root

_ZSTD = b"\x28\xb5\x2f\xfd"
_DECODER = """[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
returns = "application/vnd.oci.image.layer.v1.tar+gzip"
path = "ctd-decoder"
args = ["--decryption-keys-path", "{keys}"]
env = ["OCICRYPT_CONFIG={token}/ocicrypt.conf", "OCICRYPT_OAEP_HASHALG=sha1"]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A scratch directory with the key pairs mykey and other."""
    directory = Path(tempfile.mkdtemp(prefix="bhx"))
    for name in ("mykey", "other"):
        make_keys(directory, name)
    (directory / "token").mkdir()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def token(place: Path) -> Token:
    """The token."""
    place.chmod(0o711)
    return Token(place / "token")


@pytest.fixture(scope="module")
def hand(registry: str, token: Token) -> Iterator[Hand]:
    """A stack without keys, whose decryptor may use tokens."""
    stack = Stack(registry, default="crun", number=95)
    stack.more = _DECODER.format(keys=stack.directory / "keys", token=token.place)
    with stack:
        yield Hand(stack)


@pytest.mark.parametrize(("compression", "family"), [("zstd", "oci"), ("gzip", "docker"), ("plain", "oci")])
def test_encrypted_here_decrypted_by_skopeo(
    hand: Hand, registry: str, place: Path, compression: str, family: str
) -> None:
    """What is encrypted here, of whatever compression and family, skopeo decrypts; here it runs with the key lent, and
    `decrypt` gives the plain layers back, digest by digest.
    """
    kind = f"{compression}-{family}"
    source, sealed = box(registry, f"ours-{kind}", compression, family), f"{registry}/ours-{kind}:enc"
    # Its base may be unpacked already from a blob of another compression, and would not be fetched.
    hand.images("pull", "--no-unpack", source)
    hand.images("encrypt", "--recipient", f"jwe:{place}/mykey.pub", source, sealed)
    hand.images("push", sealed)
    suffix = {"gzip": "tar+gzip", "zstd": "tar+zstd", "plain": "tar"}[compression] + "+encrypted"
    assert all(str(layer["mediaType"]).endswith(suffix) for layer in manifest(sealed)["layers"])

    skopeo(f"docker://{sealed}", f"oci:{place}/{kind}:x", "--decryption-key", place / "mykey.pem")
    assert b"".join(unpacked(place / kind)).count(f"ours-{kind}".encode()) == 3
    assert hand.run("--rm", "--key", place / "mykey.pem", sealed, "run").stdout.decode() == f"ours-{kind}"
    hand.images("decrypt", "--key", place / "mykey.pem", sealed, f"{registry}/ours-{kind}:again")
    hand.images("push", f"{registry}/ours-{kind}:again")
    again = manifest(f"{registry}/ours-{kind}:again")
    assert [each["digest"] for each in again["layers"]] == [each["digest"] for each in manifest(source)["layers"]]
    assert not any("annotations" in each for each in again["layers"])
    assert hand.run("--rm", f"{registry}/ours-{kind}:again", "plain").stdout.decode() == f"ours-{kind}"


def unpacked(layout: Path) -> list[bytes]:
    """Return the layers of a layout's image as tars."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]

    def blob(name: object) -> bytes:
        return (layout / "blobs" / "sha256" / str(name).partition(":")[2]).read_bytes()

    found = [blob(each["digest"]) for each in json.loads(blob(entry["digest"]))["layers"]]
    return [zstandard.decompress(data) if data[:4] == _ZSTD else gunzipped(data) for data in found]


def gunzipped(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


@pytest.mark.parametrize(("scheme", "compression"), [("jwe", "gzip"), ("pkcs7", "gzip"), ("jwe", "zstd")])
def test_encrypted_by_skopeo_run_here(hand: Hand, registry: str, place: Path, scheme: str, compression: str) -> None:
    """What skopeo encrypts runs here with the keys lent, and is refused without."""
    kind = f"theirs-{scheme}-{compression}"
    source, sealed = box(registry, kind, compression), f"{registry}/{kind}:enc"
    recipient = f"{scheme}:{place}/mykey.{'pub' if scheme == 'jwe' else 'crt'}"
    skopeo(f"docker://{source}", f"docker://{sealed}", "--encryption-key", recipient)
    hand.images("pull", sealed)
    assert all(str(each["mediaType"]).endswith(f"+{compression}+encrypted") for each in manifest(sealed)["layers"])

    hand.run("--rm", sealed, "refused", status=125)
    keys = ("--key", place / "mykey.pem", "--key", place / "mykey.crt")
    assert hand.run("--rm", *keys, sealed, "lent").stdout.decode() == kind


def test_a_token_opens_an_image(hand: Hand, registry: str, token: Token) -> None:
    """An image encrypted here for a token's key is pulled as by the kubelet and runs while the token is there."""
    source, sealed = box(registry, "token"), f"{registry}/token:enc"
    hand.images("pull", source)
    hand.images("encrypt", "--recipient", f"pkcs11:{token.place}/t.pub", source, sealed)
    hand.images("push", sealed)
    hand.images("rm", "--force", source)
    hand.images("rm", sealed)
    hand.give(token.place / "token.yaml")
    hand.pull(sealed)

    assert hand.run("--rm", sealed, "token").stdout == b"token"
    assert PIN not in hand.stack.log
    hand.take_away()
    hand.run("--rm", sealed, "gone", status=125)


def test_recipients_and_layers_of_choice(hand: Hand, registry: str, place: Path) -> None:
    """One layer of three is encrypted for two recipients, a third is added later with a key; each of them opens it."""
    make_keys(place, "late")
    source, sealed = box(registry, "mixed"), f"{registry}/mixed:enc"
    hand.images("pull", source)
    two = ("--recipient", f"jwe:{place}/mykey.pub", "--recipient", f"pkcs7:{place}/other.crt")
    hand.images("encrypt", *two, "--layer", "-1", source, sealed)
    rows = [row.split()[4:] for row in hand.images("layerinfo", sealed).splitlines()[1:]]
    assert rows == [[], [], ["jwe,pkcs7", "[jwe],", "[pkcs7]"]]
    before = hand.images("layerinfo", "-q", sealed)
    late = ("--recipient", f"jwe:{place}/late.pub", "--layer", "2")
    hand.images("encrypt", *late, sealed, sealed, status=6)
    hand.images("encrypt", *late, "--key", place / "mykey.pem", sealed, sealed)
    rows = [row.split()[4:] for row in hand.images("layerinfo", sealed).splitlines()[1:]]
    assert rows == [[], [], ["jwe,pkcs7", "[jwe],", "[jwe],", "[pkcs7]"]]
    assert hand.images("layerinfo", "-q", sealed) == before
    hand.images("push", sealed)

    for name in ("mykey", "other", "late"):
        keys = ("--key", place / f"{name}.pem", "--key", place / f"{name}.crt")
        assert hand.run("--rm", *keys, sealed, name).stdout == b"mixed"
    hand.run("--rm", sealed, "nobody", status=125)
    skopeo(f"docker://{sealed}", f"oci:{place}/mixed:x", "--decryption-key", place / "late.pem")
    assert b"mixedmixed" in unpacked(place / "mixed")[2]


def test_keys_under_a_password(hand: Hand, registry: str, place: Path) -> None:
    """A lent key's password comes with pass=, from a file or from a descriptor; a wrong one is told."""
    source, sealed = box(registry, "password"), f"{registry}/password:enc"
    locked = place / "locked.pem"
    run("openssl", "pkcs8", "-topk8", "-in", place / "mykey.pem", "-passout", "pass:secret", "-out", locked)
    (place / "word").write_text("secret\n")
    hand.images("pull", source)
    hand.images("encrypt", "--recipient", f"jwe:{place}/mykey.pub", source, sealed)

    for way in ("pass=secret", f"file={place}/word", "secret"):
        hand.images("decrypt", "--key", f"{locked}:{way}", sealed, "password:plain")
    with (place / "word").open() as word:
        fd = word.fileno()
        hand.bulkhead("images", "decrypt", "--key", f"{locked}:fd={fd}", sealed, "password:plain", pass_fds=(fd,))
    hand.images("decrypt", "--key", f"{locked}:pass=wrong", sealed, "password:plain", status=2)
    hand.images("decrypt", sealed, "password:plain", status=6)


def test_evict(hand: Hand, registry: str, place: Path) -> None:
    """With the key gone, what only the encrypted image needs goes; a plain twin's layers and a container's stay."""
    source, sealed = box(registry, "evict"), f"{registry}/evicted:enc"
    hand.images("pull", source)
    hand.images("encrypt", "--recipient", f"jwe:{place}/mykey.pub", source, sealed)
    hand.images("push", sealed)
    hand.give(place / "mykey.pem")
    hand.pull(sealed)
    assert sealed not in hand.images("evict")
    assert hand.images("evict") == "0 images, 0 layers, 0B were freed\n"
    hand.take_away()

    # The plain twin needs every layer.
    assert "1 images, 0 layers" in hand.images("evict", "--dry-run", sealed)
    hand.images("rm", "--force", source)
    told = hand.images("evict", sealed)
    # Other images of these tests have the layer of busybox.
    assert "2 layers" in told or "3 layers" in told
    assert "you are not authorized to use this image" in told
    assert f"{registry}/evicted" not in hand.images("ls", "--filter", "unpacked=true")
    assert f"{registry}/evicted" in hand.images("ls", "--filter", "unpacked=false")
    assert hand.run("--rm", "--key", place / "mykey.pem", sealed, "again").stdout == b"evict"
    # A container keeps its layers, in whatever state.
    hand.run("--key", place / "mykey.pem", sealed, "user")
    assert "stays until its containers are removed" in hand.images("evict", sealed)
    hand.stack.remove_pods()


def test_ctr_enc(hand: Hand, registry: str, place: Path) -> None:
    """ctr-enc decrypts what is encrypted here and shows the same layers; what it encrypts for two platforms runs."""
    ctr = build("imgcrypt")["ctr-enc"]
    name, sealed = f"{registry}/busybox:1", "docker.io/test/here:enc"
    hand.images("pull", "--all-platforms", name)
    hand.images("encrypt", "--recipient", f"jwe:{place}/mykey.pub", "--platform", "all", name, sealed)
    hand.images("export", "--all-platforms", place / "ours.tar", sealed)
    with Containerd(registry, "/usr/bin/containerd", "/usr/bin", number=96) as peer:
        own = (ctr, "-a", peer.address, "images")
        run(*own, "import", "--no-unpack", "--all-platforms", place / "ours.tar")
        theirs = [line.split()[1] for line in run(*own, "layerinfo", sealed).stdout.decode().splitlines()[1:]]
        assert theirs == hand.images("layerinfo", "-q", sealed).split()
        run(*own, "decrypt", "--key", place / "mykey.pem", sealed, "docker.io/test/here:plain")
        opened = run(*own, "layerinfo", "docker.io/test/here:plain").stdout.decode()
        assert {line.split()[1] for line in opened.splitlines()[1:]} == set(
            hand.images("layerinfo", "-q", name).split()
        )
        recipients = ("--recipient", f"jwe:{place}/other.pub", "--recipient", f"pkcs7:{place}/mykey.crt")
        run(*own, "encrypt", *recipients, "docker.io/test/here:plain", "docker.io/test/there:enc")
        run(*own, "export", "--all-platforms", place / "theirs.tar", "docker.io/test/there:enc")
    hand.images("import", "--all-platforms", place / "theirs.tar")
    for keys in (("--key", place / "other.pem"), ("--key", place / "mykey.pem", "--key", place / "mykey.crt")):
        done = hand.run("--rm", *keys, "docker.io/test/there:enc", "theirs", "echo", "Hello World!")
        assert done.stdout == b"Hello World!\n"
