"""Encrypted images for tests: key pairs made with openssl, and the command line against a stack."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.stack import BIN, Stack

TIMEOUT = 120


def run(*command: object, status: int = 0, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Run a program and check how it ends."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, timeout=TIMEOUT, **options)  # type: ignore[call-overload]
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

    def bulkhead(self, *words: object, status: int = 0, **options: object) -> "subprocess.CompletedProcess[bytes]":
        """Run a command, with --config where it belongs."""
        count = 2 if words[0] == "images" else 1
        command = [BIN / "bulkhead", *words[:count], "--config", self.stack.config, *words[count:]]
        return run(*command, status=status, **options)

    def images(self, *words: object, status: int = 0) -> str:
        """Run a verb of images and return what it prints."""
        return self.bulkhead("images", *words, status=status).stdout.decode()

    def run(self, *words: object, status: int = 0, **options: object) -> "subprocess.CompletedProcess[bytes]":
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
        from bulkhead import paths, rpc
        from bulkhead.proto import keys_pb2, keys_pb2_grpc

        state = self.stack.directory / "state" / "io.bulkhead"
        wanted = {name for name in os.listdir(self.keys) if not name.endswith(".password")}
        with rpc.channel(str(paths.service_socket(state, "decryptor"))) as channel:
            stub = keys_pb2_grpc.KeysStub(channel)

            def same() -> bool:
                answer = stub.ListKeys(keys_pb2.ListKeysRequest(), timeout=10)
                return {key.file for key in answer.keys if key.file} == wanted

            eventually(same)


def eventually(true: Callable[[], bool], seconds: float = 15) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.05)
