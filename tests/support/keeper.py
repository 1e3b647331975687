"""A decryptor of its own for a test: the real program, its keys in a scratch directory, and a client of its sockets."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead import layers, paths, rpc
from bulkhead.proto import keys_pb2, keys_pb2_grpc

TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Keeper:
    """One decryptor."""

    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="bhk")))
    environment: dict[str, str] = field(default_factory=dict)
    extra: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def keys(self) -> Path:
        """The key directory."""
        return self.directory / "keys"

    @property
    def state(self) -> Path:
        """The state directory proper."""
        return self.directory / "state" / "io.bulkhead"

    @property
    def socket(self) -> str:
        """The layer socket."""
        return str(paths.layer_socket(self.state))

    @property
    def log(self) -> str:
        """Everything the decryptor wrote so far."""
        return (self.directory / "log").read_text(errors="replace")

    def prepare(self) -> None:
        """Make the directories and the configuration."""
        self.keys.mkdir(parents=True, exist_ok=True)
        (self.state / "decryptor").mkdir(parents=True, exist_ok=True)
        (self.directory / "config.toml").write_text(
            f'version = 3\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            f'[bulkhead]\ndecryption_keys_path = "{self.keys}"\n{self.extra}\n'
            "[bulkhead.metrics_ports]\ndecryptor = -1\n"
        )

    def start(self) -> None:
        """Start the program and wait until it serves."""
        program = Path(sys.executable).parent / "decryptor"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "--config", self.directory / "config.toml"], stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while " serving on " not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the program."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None

    def listed(self) -> dict[str, keys_pb2.Key]:
        """Return the keys by file, providers by fingerprint."""
        with rpc.channel(str(paths.service_socket(self.state, "decryptor"))) as channel:
            answer = keys_pb2_grpc.KeysStub(channel).ListKeys(keys_pb2.ListKeysRequest(), timeout=30)
        return {key.file or key.fingerprint: key for key in answer.keys}

    def check(self, *each: keys_pb2.Layer, use: keys_pb2.Use | None = None) -> list[keys_pb2.Opened]:
        """Ask for an authorisation; the refusal as the error it is in Bulkhead."""
        with rpc.channel(str(paths.service_socket(self.state, "decryptor"))) as channel:
            request = keys_pb2.CheckRequest(use=use, layers=each)
            answer = rpc.call(keys_pb2_grpc.KeysStub(channel).Check, request, service="decryptor", timeout=60)
        return list(answer.opened)

    def decrypt(self, layer: keys_pb2.Layer, cipher: bytes, use: keys_pb2.Use | None = None) -> bytes:
        """Return a layer's plain bytes, once the verdict on them is good."""
        request = keys_pb2.DecryptRequest(use=use, layer=layer)
        with memory(cipher) as source, memory() as sink:
            with layers.decrypt(self.socket, request, source, sink) as work:
                work.started(30)
                result = work.result(keys_pb2.DecryptResult, 60)
            plain = contents(sink)
        assert (result.digest, result.size) == (digest_of(plain), len(plain))
        return plain

    def encrypt(self, plain: bytes, *recipients: keys_pb2.Recipient) -> tuple[keys_pb2.Layer, bytes]:
        """Return a plain layer's encrypted twin: its descriptor and its bytes."""
        layer = keys_pb2.Layer(digest=digest_of(plain), media_type=TAR_GZIP)
        with memory(plain) as source, memory() as sink:
            request = keys_pb2.EncryptRequest(layer=layer, recipients=recipients)
            with layers.encrypt(self.socket, request, source, sink) as work:
                work.started(30)
                result = work.result(keys_pb2.EncryptResult, 60)
            cipher = contents(sink)
        assert (result.digest, result.size) == (digest_of(cipher), len(cipher))
        return encrypted(result.annotations, cipher), cipher


def encrypted(annotations: Mapping[str, str], cipher: bytes) -> keys_pb2.Layer:
    """Return an encrypted layer's descriptor."""
    media_type = f"{TAR_GZIP}+encrypted"
    return keys_pb2.Layer(digest=digest_of(cipher), media_type=media_type, annotations=annotations)


@contextmanager
def memory(data: bytes = b"") -> Iterator[int]:
    """A memory file with that content, read from its beginning."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def contents(fd: int) -> bytes:
    """Return everything in a memory file."""
    return os.pread(fd, os.fstat(fd).st_size, 0)
