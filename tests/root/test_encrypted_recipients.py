"""Whole images, encrypted by the command line for every kind of recipient: ocicrypt opens them, so does the node."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.build import build
from support.encrypted import Hand, box, make_keys, manifest, run, skopeo
from support.images import digest
from support.stack import Stack
from support.token import Token

pytestmark = pytest.mark.root

MAIL, LOCKED = "node@example.com", "locked@example.com"
SECRET = "33" * 32
_DECODER = """[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
returns = "application/vnd.oci.image.layer.v1.tar+gzip"
path = "ctd-decoder"
args = ["--decryption-keys-path", "{keys}"]
env = [
  "OCICRYPT_CONFIG={place}/ocicrypt.conf",
  "OCICRYPT_OAEP_HASHALG=sha1",
  "OCICRYPT_KEYPROVIDER_CONFIG={place}/providers.json",
]
"""


@dataclass(frozen=True)
class Kind:
    """One kind of recipient: as the command line has it, the node's key files, and the keys that ocicrypt is given."""

    recipient: str
    files: tuple[str, ...]
    keys: tuple[str, ...]


KINDS = {
    "jwe": Kind("jwe:{place}/mykey.pub", ("mykey.pem",), ("mykey.pem",)),
    "pkcs7": Kind("pkcs7:{place}/mykey.crt", ("mykey.pem", "mykey.crt"), ("mykey.pem", "mykey.crt")),
    "pgp": Kind(f"pgp:{LOCKED}", ("locked.gpg", "locked.gpg.password"), ("locked.gpg:pass=secret",)),
    "pkcs11": Kind("pkcs11:{place}/token.yaml", ("token.yaml",), ("token.yaml",)),
    "provider": Kind("provider:vault", (), ("provider:vault",)),
}


class Field:
    """Keys of every kind in one directory, and the reference library as a program."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ocicrypt = build("ocicrypt")["ocicrypt"]
        self.environment = {
            **os.environ,
            "GNUPGHOME": f"{place}/gnupg",
            "OCICRYPT_KEYPROVIDER_CONFIG": f"{place}/providers.json",
            "OCICRYPT_CONFIG": f"{place}/ocicrypt.conf",
            "OCICRYPT_OAEP_HASHALG": "sha1",
        }

    def make_keys(self) -> None:
        """Make a key of every kind, OpenPGP's open and under a password."""
        make_keys(self.place)
        (self.place / "gnupg").mkdir(mode=0o700)
        for user, password, file in ((MAIL, "", "ring.gpg"), (LOCKED, "secret", "locked.gpg")):
            self.gpg("--passphrase", password, "--quick-gen-key", f"Node <{user}>", "rsa2048", "encrypt", "never")
            ring = self.gpg("--passphrase", password, "--export-secret-keys", user)
            (self.place / file).write_bytes(ring)
        (self.place / "locked.gpg.password").write_text("secret\n")
        # Where ocicrypt looks for public rings, it knows the older name alone.
        (self.place / "gnupg" / "pubring.gpg").write_bytes(self.gpg("--export"))
        provider = self.place / "provider"
        provider.write_text(f"#!/bin/sh\nOCICRYPT_TEST_KEY={SECRET} exec {self.place}/ocicrypt provide\n")
        provider.chmod(0o755)
        shutil.copy(self.ocicrypt, self.place / "ocicrypt")
        providers = {"key-providers": {"vault": {"cmd": {"path": str(provider)}}}}
        (self.place / "providers.json").write_text(json.dumps(providers))

    def gpg(self, *words: str) -> bytes:
        command = ("gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", *words)
        return run(*command, env=self.environment).stdout

    def layers(self, name: str, *keys: str) -> list[str]:
        """Have ocicrypt decrypt every layer of an image in the registry, and return their digests."""
        with tempfile.TemporaryDirectory(prefix="bhr") as scratch:
            skopeo(f"docker://{name}", f"dir:{scratch}/image")
            document = json.loads(Path(scratch, "image", "manifest.json").read_text())
            found = []
            for layer in document["layers"]:
                Path(scratch, "descriptor").write_text(json.dumps(layer))
                cipher = Path(scratch, "image", layer["digest"].partition(":")[2])
                given = [word for key in keys for word in ("-key", key)]
                command = (self.ocicrypt, "decrypt", *given, "-descriptor", f"{scratch}/descriptor", cipher)
                run(*command, f"{scratch}/plain", env=self.environment, cwd=self.place)
                found.append(digest(Path(scratch, "plain").read_bytes()))
            return found


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    """The keys."""
    place = Path(tempfile.mkdtemp(prefix="bhr"))
    place.chmod(0o711)
    made = Field(place)
    Token(place)
    place.chmod(0o711)
    made.make_keys()
    yield made
    subprocess.run(["gpgconf", "--kill", "all"], env=made.environment, check=False, timeout=60)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def hand(registry: str, field: Field) -> Iterator[Hand]:
    """A stack without keys, whose decryptor may use the token and the provider."""
    stack = Stack(registry, default="crun", number=94)
    stack.more = _DECODER.format(keys=stack.directory / "keys", place=field.place)
    with stack:
        yield Hand(stack)


@pytest.mark.parametrize("kind", KINDS)
def test_every_recipient_opens_what_is_encrypted_here(hand: Hand, registry: str, field: Field, kind: str) -> None:
    """Layer by layer, ocicrypt finds what was encrypted; the node pulls and runs it, and `decrypt` gives it back."""
    way = KINDS[kind]
    source, sealed, again = box(registry, f"to-{kind}"), f"{registry}/to-{kind}:enc", f"{registry}/to-{kind}:again"
    plain = [str(each["digest"]) for each in manifest(source)["layers"]]
    hand.images("pull", "--no-unpack", source)
    if kind == "pkcs11":  # a file that names its module's environment counts for the decryptor if it has it
        hand.give(*(field.place / name for name in way.files))
    recipient = way.recipient.format(place=field.place)
    hand.images("encrypt", "--recipient", recipient, "--gpg-homedir", field.place / "gnupg", source, sealed)
    hand.images("push", sealed)

    assert field.layers(sealed, *way.keys) == plain
    for name in (source, sealed):
        hand.images("rm", name)
    hand.give(*(field.place / name for name in way.files))
    hand.pull(sealed)
    assert hand.run("--rm", sealed, kind).stdout.decode() == f"to-{kind}"
    # Its base was unpacked before from another blob and so not fetched.
    hand.images("pull", "--no-unpack", sealed)
    hand.images("decrypt", sealed, again)
    hand.images("push", again)
    assert [each["digest"] for each in manifest(again)["layers"]] == plain
    if way.files:
        hand.take_away()
        hand.run("--rm", sealed, f"{kind}-gone", status=125)


@pytest.mark.parametrize(("mail", "files"), [(MAIL, ("ring.gpg",)), (LOCKED, ("locked.gpg", "locked.gpg.password"))])
def test_skopeos_openpgp_images_run_here(
    hand: Hand, registry: str, field: Field, mail: str, files: tuple[str, ...]
) -> None:
    """What skopeo encrypts for an OpenPGP key the node pulls and runs, whether the key has a password or not."""
    name = mail.partition("@")[0]
    source, sealed = box(registry, f"from-{name}"), f"{registry}/from-{name}:enc"
    skopeo(f"docker://{source}", f"docker://{sealed}", "--encryption-key", f"pgp:{mail}", env=field.environment)
    hand.give(*(field.place / file for file in files))
    hand.pull(sealed)

    assert hand.run("--rm", sealed, name).stdout.decode() == f"from-{name}"
    hand.take_away()


def test_skopeo_opens_our_openpgp_images(hand: Hand, registry: str, field: Field) -> None:
    """What is encrypted here for an OpenPGP key skopeo decrypts, layer by layer."""
    source, sealed, there = box(registry, "to-skopeo"), f"{registry}/to-skopeo:enc", field.place / "opened"
    hand.images("pull", "--no-unpack", source)
    hand.images("encrypt", "--recipient", f"pgp:{MAIL}", "--gpg-homedir", field.place / "gnupg", source, sealed)
    hand.images("push", sealed)
    key = ("--decryption-key", field.place / "ring.gpg")
    skopeo(f"docker://{sealed}", f"dir:{there}", *key, env=field.environment)
    opened = json.loads((there / "manifest.json").read_text())["layers"]

    assert [each["digest"] for each in opened] == [each["digest"] for each in manifest(source)["layers"]]
