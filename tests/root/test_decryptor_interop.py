"""Encrypted layers between Bulkhead and the field: ocicrypt itself, imgcrypt's ctd-decoder, skopeo; both directions."""

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead import layers
from bulkhead.proto import keys_pb2
from conformance.build import build
from support.keeper import Keeper, digest_of, encrypted, memory

pytestmark = pytest.mark.root

SECRET = "11" * 32


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


class Field:
    """The others' programs, and key pairs of every kind in one directory; the keeper has the private ones."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper, self.keys, self.directory = keeper, keeper.keys, keeper.directory
        self.ocicrypt = build("ocicrypt")["ocicrypt"]
        self.decoder = build("imgcrypt")["ctd-decoder"]
        self.environment = {
            **os.environ,
            "OCICRYPT_TEST_KEY": SECRET,
            "OCICRYPT_KEYPROVIDER_CONFIG": str(self.directory / "providers.json"),
            "GNUPGHOME": str(self.directory / "gnupg"),
        }
        self.plain = os.urandom(300_000) + b"\0" * 100_000

    def make_keys(self) -> None:
        """RSA in PKCS#1 and under a password, EC in SEC1, a certificate, an OpenPGP key under a password."""
        keys, public = self.keys, self.directory
        openssl("genrsa", "-traditional", "-out", keys / "rsa.pem", 2048)
        openssl("rsa", "-in", keys / "rsa.pem", "-pubout", "-out", public / "rsa.pub")
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", keys / "ec.pem")
        openssl("ec", "-in", keys / "ec.pem", "-pubout", "-out", public / "ec.pub")
        # ocicrypt knows passwords in PEM's own encryption alone, which is older than PKCS#8's.
        openssl("genrsa", "-traditional", "-aes256", "-passout", "pass:secret", "-out", keys / "locked.pem", 2048)
        openssl("rsa", "-in", keys / "locked.pem", "-passin", "pass:secret", "-pubout", "-out", public / "locked.pub")
        (keys / "locked.pem.password").write_text("secret\n")
        openssl("req", "-x509", "-new", "-key", keys / "rsa.pem", "-subj", "/CN=node", "-out", keys / "cert.pem")
        (public / "gnupg").mkdir(mode=0o700)
        self.gpg("--passphrase", "secret", "--quick-gen-key", "Node <node@example.com>", "rsa2048", "encrypt", "never")
        ring = self.gpg("--passphrase", "secret", "--pinentry-mode", "loopback", "--export-secret-keys")
        (keys / "ring.gpg").write_bytes(ring)
        (keys / "ring.gpg.password").write_text("secret")
        # Where ocicrypt looks for public rings, it knows the older name alone.
        (public / "gnupg" / "pubring.gpg").write_bytes(self.gpg("--export"))

    def gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--batch", "--quiet", *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, env=self.environment).stdout

    def provide(self, entry: dict[str, object]) -> None:
        """Configure the provider `test`."""
        (self.directory / "providers.json").write_text(json.dumps({"key-providers": {"test": entry}}))

    def run(self, *arguments: object, **options: object) -> bytes:
        """Run the oracle in the public keys' directory and return its output."""
        command = [str(self.ocicrypt), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, timeout=60, env=self.environment, cwd=self.directory)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout

    def encrypt(self, *recipients: str) -> tuple[keys_pb2.Layer, bytes]:
        """Have ocicrypt encrypt the plain layer."""
        (self.directory / "plain").write_bytes(self.plain)
        given = [argument for each in recipients for argument in ("-recipient", each)]
        annotations = json.loads(self.run("encrypt", *given, "plain", "cipher"))
        cipher = (self.directory / "cipher").read_bytes()
        return encrypted(annotations, cipher), cipher

    def decrypt(self, layer: keys_pb2.Layer, cipher: bytes, *keys: str) -> bytes:
        """Have ocicrypt decrypt a layer."""
        (self.directory / "cipher").write_bytes(cipher)
        self.describe(layer)
        given = [argument for each in keys for argument in ("-key", each)]
        self.run("decrypt", *given, "-descriptor", "descriptor", "cipher", "plain")
        return (self.directory / "plain").read_bytes()

    def describe(self, layer: keys_pb2.Layer) -> dict[str, object]:
        """Write a layer's descriptor where the oracle reads it."""
        descriptor = {
            "mediaType": layer.media_type, "digest": layer.digest, "annotations": dict(layer.annotations), "size": 0,
        }  # fmt: skip
        (self.directory / "descriptor").write_text(json.dumps(descriptor))
        return descriptor

    def recipient(self, text: str) -> keys_pb2.Recipient:
        """Return a recipient as the command line would."""
        scheme, _, value = text.partition(":")
        if scheme == "pgp":
            return keys_pb2.Recipient(scheme=scheme, name=value, key=self.gpg("--export"))
        if scheme == "provider":
            return keys_pb2.Recipient(scheme=scheme, name=value)
        return keys_pb2.Recipient(scheme=scheme, key=(self.directory / value).read_bytes())


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    """A decryptor with a key of every kind, beside the others' programs."""
    keeper = Keeper()
    keeper.prepare()
    made = Field(keeper)
    made.make_keys()
    made.provide({"cmd": {"path": str(made.ocicrypt), "args": ["provide"]}})
    # The helper passes none of this on; a provider that needs a secret has it in a file or in a wrapper of its own.
    wrapper = made.directory / "provider"
    variables = f"OCICRYPT_TEST_KEY={SECRET} OCICRYPT_TEST_LOG={made.directory}/request"
    wrapper.write_text(f"#!/bin/sh\n{variables} exec {made.ocicrypt} provide\n")
    wrapper.chmod(0o755)
    made.provide({"cmd": {"path": str(wrapper)}})
    keeper.environment = {"OCICRYPT_KEYPROVIDER_CONFIG": made.environment["OCICRYPT_KEYPROVIDER_CONFIG"]}
    keeper.start()
    yield made
    subprocess.run(["gpgconf", "--kill", "all"], env=made.environment, check=False, timeout=60)
    keeper.stop()
    shutil.rmtree(keeper.directory)


WAYS = {
    "jwe-rsa": (["jwe:rsa.pub"], ["keys/rsa.pem"]),
    "jwe-ec": (["jwe:ec.pub"], ["keys/ec.pem"]),
    "jwe-password": (["jwe:locked.pub"], ["keys/locked.pem:pass=secret"]),
    "jwe-several": (["jwe:rsa.pub", "jwe:ec.pub"], ["keys/ec.pem"]),
    "pkcs7": (["pkcs7:keys/cert.pem"], ["keys/rsa.pem", "keys/cert.pem"]),
    "pgp": (["pgp:node@example.com"], ["keys/ring.gpg:pass=secret"]),
    "provider": (["provider:test"], ["provider:test"]),
    "jwe-and-all": (["jwe:rsa.pub", "pkcs7:keys/cert.pem", "pgp:node@example.com", "provider:test"], ["keys/rsa.pem"]),
}
#: ocicrypt parses EC keys in PKCS#8 alone.
SEC1 = {"keys/ec.pem": "ec8.pem"}


@pytest.mark.parametrize("way", WAYS)
def test_what_ocicrypt_encrypts_is_decrypted(field: Field, way: str) -> None:
    """A layer that ocicrypt encrypted for any scheme comes out as it was, under the same annotations' authorisation."""
    layer, cipher = field.encrypt(*WAYS[way][0])

    assert field.keeper.check(layer)[0].scheme == ("provider.test" if way == "provider" else way.split("-")[0])
    assert field.keeper.decrypt(layer, cipher) == field.plain


@pytest.mark.parametrize("way", WAYS)
def test_what_is_encrypted_here_ocicrypt_decrypts(field: Field, way: str) -> None:
    """A layer encrypted here for any scheme is one to ocicrypt, and to the decryptor itself."""
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", field.keys / "ec.pem", "-out", field.directory / "ec8.pem")
    layer, cipher = field.keeper.encrypt(field.plain, *map(field.recipient, WAYS[way][0]))
    keys = [SEC1.get(key, key) for key in WAYS[way][1]]

    assert field.decrypt(layer, cipher, *keys) == field.plain
    assert field.keeper.decrypt(layer, cipher) == field.plain


def test_recipients_are_added_in_both_directions(field: Field) -> None:
    """A recipient added here opens ocicrypt's layer, one added by ocicrypt opens ours; the blob stays as it was."""
    layer, cipher = field.encrypt("jwe:rsa.pub")
    request = keys_pb2.RecipientsRequest(layer=layer, recipients=[field.recipient("jwe:locked.pub")])
    more = layers.add_recipients(field.keeper.socket, request).annotations

    assert field.decrypt(encrypted(more, cipher), cipher, "keys/locked.pem:pass=secret") == field.plain
    layer, cipher = field.keeper.encrypt(field.plain, field.recipient("jwe:rsa.pub"))
    field.describe(layer)
    (field.directory / "cipher").write_bytes(cipher)
    given = ("-key", "keys/rsa.pem", "-recipient", "pkcs7:keys/cert.pem", "-descriptor", "descriptor")
    added = json.loads(field.run("encrypt", *given, "cipher", "unused"))
    del added["org.opencontainers.image.enc.keys.jwe"]
    assert field.keeper.check(encrypted(added, cipher))[0].scheme == "pkcs7"


def test_a_provider_is_sent_its_own_parameters_alone(field: Field) -> None:
    """The request is ocicrypt's, but for the private keys that ocicrypt puts into it."""
    layer, cipher = field.encrypt("provider:test")
    field.keeper.decrypt(layer, cipher)
    request = json.loads((field.directory / "request").read_text())

    assert request["op"] == "keyunwrap"
    assert request["keyunwrapparams"]["dc"] == {"Parameters": {}}
    assert set(request) == {"op", "keywrapparams", "keyunwrapparams"}


@pytest.mark.parametrize("recipient", ["jwe:rsa.pub", "pkcs7:keys/cert.pem"])
def test_imgcrypts_decoder_opens_what_is_encrypted_here(field: Field, recipient: str) -> None:
    """ctd-decoder, as containerd runs it with a directory of keys, decrypts a layer encrypted here."""
    layer, cipher = field.keeper.encrypt(field.plain, field.recipient(recipient))
    node = field.directory / "node"
    node.mkdir(exist_ok=True)
    for name in ("rsa.pem", "cert.pem"):
        shutil.copy(field.keys / name, node / name)
    payload = {"DecryptConfig": {"Parameters": {}}, "Descriptor": field.describe(layer)}

    assert decode(field.decoder, node, payload, cipher) == field.plain


def decode(program: Path, keys: Path, payload: dict[str, object], cipher: bytes) -> bytes:
    """Run ctd-decoder: the blob on standard input, the payload as a protobuf Any on descriptor 3."""
    from google.protobuf.any_pb2 import Any

    message = Any(type_url="io.containerd.ocicrypt.v1.Payload", value=json.dumps(payload).encode())
    with memory(message.SerializeToString()) as third:
        script = f'exec "$0" --decryption-keys-path "$1" 3<&{third}'
        result = subprocess.run(
            ["bash", "-c", script, str(program), str(keys)],
            input=cipher,
            capture_output=True,
            pass_fds=[third],
            timeout=60,
        )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.mark.parametrize("recipient", ["jwe:rsa.pub", "pkcs7:keys/cert.pem"])
def test_skopeos_images(field: Field, tmp_path: Path, recipient: str) -> None:
    """Every layer of an image that skopeo encrypted opens; an image of a layer encrypted here skopeo decrypts."""
    layer, cipher = field.keeper.encrypt(field.plain, field.recipient(recipient))
    write_image(tmp_path / "ours", layer, cipher, field.plain)
    key = ["--decryption-key", "keys/rsa.pem", "--decryption-key", "keys/cert.pem"]
    skopeo(field, "copy", *key, f"oci:{tmp_path}/ours:x", f"oci:{tmp_path}/open:x")
    (opened,) = read_layers(tmp_path / "open")
    assert blob(tmp_path / "open", opened) == field.plain
    write_image(tmp_path / "plain", keys_pb2.Layer(digest=digest_of(field.plain)), field.plain, field.plain)
    skopeo(field, "copy", "--encryption-key", recipient, f"oci:{tmp_path}/plain:x", f"oci:{tmp_path}/theirs:x")
    for theirs in read_layers(tmp_path / "theirs"):
        # skopeo wraps the digest of what it read, though it compressed that before it encrypted it.
        theirs.diff_id = digest_of(field.plain)
        compressed = field.keeper.decrypt(theirs, blob(tmp_path / "theirs", theirs))
        assert gzip.decompress(compressed) == field.plain


def skopeo(field: Field, *arguments: str) -> None:
    command = ["skopeo", "--insecure-policy", *arguments]
    result = subprocess.run(command, capture_output=True, timeout=120, cwd=field.directory, check=False)
    assert result.returncode == 0, result.stderr.decode()


def write_image(layout: Path, layer: keys_pb2.Layer, data: bytes, plain: bytes) -> None:
    """Write an OCI layout of one image of one layer."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, **more: object) -> dict[str, object]:
        (blobs / digest_of(content).partition(":")[2]).write_bytes(content)
        return {"digest": digest_of(content), "size": len(content), **more}

    image = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [digest_of(plain)]}
    config = put(
        json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs, "config": {}}).encode(),
        mediaType=f"{image}.config.v1+json",
    )
    # Uncompressed to those who look into it: the bytes are no tar, and nobody here unpacks them.
    media_type = f"{image}.layer.v1.tar" + ("+encrypted" if layer.annotations else "")
    content = put(data, mediaType=media_type, **({"annotations": dict(layer.annotations)} if layer.annotations else {}))
    manifest = put(
        json.dumps(
            {"schemaVersion": 2, "mediaType": f"{image}.manifest.v1+json", "config": config, "layers": [content]}
        ).encode(),
        mediaType=f"{image}.manifest.v1+json",
        annotations={"org.opencontainers.image.ref.name": "x"},
    )
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def read_layers(layout: Path) -> list[keys_pb2.Layer]:
    """Return the layers of a layout's one image."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs" / "sha256" / entry["digest"].partition(":")[2]).read_text())
    return [
        keys_pb2.Layer(digest=each["digest"], media_type=each["mediaType"], annotations=each.get("annotations") or {})
        for each in manifest["layers"]
    ]


def blob(layout: Path, layer: keys_pb2.Layer) -> bytes:
    """Return a layer's blob."""
    return (layout / "blobs" / "sha256" / layer.digest.partition(":")[2]).read_bytes()
