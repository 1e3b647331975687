"""Encrypted images for tests: key pairs made with openssl, layers sealed by hand, and the command line of a stack."""

import contextlib
import hmac
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from bulkhead import paths, rpc
from bulkhead.proto import keys_pb2, keys_pb2_grpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from decryptor import options, wrap
from decryptor.deadline import Deadline
from decryptor.options import Private
from decryptor.tools import Tools
from support import images
from support.images import Image, Layer, Pusher
from support.stack import BIN, Stack

TIMEOUT = 120


def run(*command: object, status: int = 0, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    """Run a program and check how it ends."""
    words = [str(word) for word in command]
    done: subprocess.CompletedProcess[bytes]
    done = subprocess.run(words, capture_output=True, timeout=TIMEOUT, **options)
    assert done.returncode == status, (words, done.stdout[-2000:], done.stderr[-4000:])
    return done


def make_keys(place: Path, name: str = "mykey") -> None:
    """Make an RSA key NAME.pem with NAME.pub and the certificate NAME.crt, as the flow's users do."""
    key = place / f"{name}.pem"
    run("openssl", "genrsa", "-out", key, 2048)
    run("openssl", "rsa", "-in", key, "-pubout", "-out", place / f"{name}.pub")
    run("openssl", "req", "-x509", "-new", "-key", key, "-subj", f"/CN={name}", "-out", place / f"{name}.crt")


class Hand:
    """A stack's command line and its key directory."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def bulkhead(self, *words: object, status: int = 0, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run a command, with --config where it belongs."""
        count = 2 if words[0] == "images" else 1
        command = [BIN / "bulkhead", *words[:count], "--config", self.stack.config, *words[count:]]
        return run(*command, status=status, **options)

    def images(self, *words: object, status: int = 0) -> str:
        """Run a verb of images and return what it prints."""
        return self.bulkhead("images", *words, status=status).stdout.decode()

    def run(self, *words: object, status: int = 0, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run a container."""
        return self.bulkhead("run", *words, status=status, **options)

    def pull(self, name: str) -> str:
        """Pull as the kubelet does and return the image's id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        return str(self.stack.image_service().PullImage(request, timeout=TIMEOUT).image_ref)

    @property
    def keys(self) -> Path:
        """The key directory."""
        return self.stack.directory / "keys"

    def give(self, *files: Path) -> None:
        """Put files into the key directory, and wait until the decryptor has read them."""
        for file in files:
            shutil.copy(file, self.keys / file.name)
        self.settle()

    def take_away(self) -> None:
        """Empty the key directory, and wait until the decryptor has noticed."""
        for path in self.keys.iterdir():
            path.unlink()
        self.settle()

    def settle(self) -> None:
        """Wait until the decryptor's list of keys is that of the directory."""
        state = self.stack.directory / "state" / "io.bulkhead"
        wanted = {name for name in os.listdir(self.keys) if not name.endswith(".password")}
        with rpc.channel(str(paths.service_socket(state, "decryptor"))) as channel:
            stub = keys_pb2_grpc.KeysStub(channel)

            def same() -> bool:
                try:
                    answer = stub.ListKeys(keys_pb2.ListKeysRequest(), timeout=30)
                except grpc.RpcError:
                    return False  # one that was killed is on its way back
                return {key.file for key in answer.keys if key.file} == wanted

            eventually(same)


def eventually(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.05)


@dataclass
class Sealed:
    """A layer encrypted by the test itself, so that its key is known and any part of it can be wrong."""

    cipher: bytes
    #: Its descriptor.
    entry: dict[str, Any]
    key: bytes


def seal(blob: bytes, public_key: bytes, media_type: str, *, digest: str = "", mac: bytes = b"") -> Sealed:
    """Encrypt a layer blob for a JWE recipient; `digest` and `mac` in place of the right ones."""
    key, nonce = os.urandom(32), os.urandom(16)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
    cipher = encryptor.update(blob) + encryptor.finalize()
    payload = Private(key, nonce, digest or images.digest(blob)).to_json()
    recipient = keys_pb2.Recipient(scheme="jwe", key=public_key)
    notes = wrap.annotations(payload, [recipient], Tools({}, None), Deadline(120, "wrapping"))
    notes[options.PUBLIC] = options.to_annotation(mac or hmac.digest(key, cipher, "sha256"))
    return Sealed(cipher, entry(cipher, f"{media_type}+encrypted", notes), key)


def entry(blob: bytes, media_type: str, notes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the descriptor of a blob."""
    made: dict[str, Any] = {"mediaType": media_type, "digest": images.digest(blob), "size": len(blob)}
    return {**made, "annotations": dict(notes)} if notes else made


def push(
    registry: str, name: str, layers: Sequence[tuple[bytes, dict[str, Any]]], diff_ids: Sequence[str], **config: Any
) -> str:
    """Push an image of blobs and their descriptors, and return its name."""
    pusher, media = images.Pusher(registry), images.MEDIA["oci"]
    rootfs = {"type": "layers", "diff_ids": list(diff_ids)}
    inner = {"Env": ["PATH=/usr/bin:/bin"], **config}
    document = json.dumps({"architecture": "amd64", "os": "linux", "config": inner, "rootfs": rootfs}).encode()
    for blob in (document, *(blob for blob, _ in layers)):
        pusher.blob(name, blob)
    body = {"schemaVersion": 2, "mediaType": media["manifest"], "config": entry(document, media["config"])}
    manifest = json.dumps({**body, "layers": [each for _, each in layers]}).encode()
    pusher.manifest(name, "1", manifest, media["manifest"])
    return f"{registry}/{name}:1"


def box(registry: str, name: str, compression: str = "gzip", family: str = "oci") -> str:
    """Push an image of three layers that is no other's, and return its name."""
    layers = [images.busybox_layer(), Layer().file("one", name).tar(), Layer().file("two", name * 2).tar()]
    Pusher(registry).image(name, "1", Image(layers, {"Cmd": ["cat", "/one"]}, family, compression))
    return f"{registry}/{name}:1"


def manifest(name: str) -> dict[str, list[dict[str, object]]]:
    """Return an image's manifest as the registry has it."""
    raw: dict[str, list[dict[str, object]]] = json.loads(
        run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{name}").stdout
    )
    return raw


def skopeo(source: str, target: str, *more: object, **options: Any) -> None:
    """Copy an image, encrypted or decrypted on the way as the further arguments say."""
    run(
        "skopeo",
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        *more,
        source,
        target,
        **options,
    )


def tree(pid: int) -> dict[int, str]:
    """Return a process and all its descendants with their command lines."""
    found = {pid: ""}
    pending = [pid]
    while pending:
        each = pending.pop()
        with contextlib.suppress(OSError):
            found[each] = Path(f"/proc/{each}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            for task in os.listdir(f"/proc/{each}/task"):
                more = Path(f"/proc/{each}/task/{task}/children").read_text().split()
                found |= {int(child): "" for child in more}
                pending += map(int, more)
    return found


def traces_of(pem: bytes) -> list[bytes]:
    """Return what would betray an RSA key: both primes in both byte orders, its DER, a line of its PEM."""
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    made = [prime.to_bytes(128, order) for prime in (numbers.p, numbers.q) for order in _ORDERS]
    return [*made, key.private_bytes(serialization.Encoding.DER, *form)[40:], pem.splitlines()[10]]


_ORDERS: tuple[Literal["big"], Literal["little"]] = ("big", "little")
