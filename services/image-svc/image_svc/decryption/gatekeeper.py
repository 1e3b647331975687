"""Encrypted images: the decryptor says whether the node has the keys, every time, and turns layers into plain ones."""

import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from bulkhead import layers, paths, rpc
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, Cancelled, FailedPrecondition, Unavailable
from bulkhead.proto import keys_pb2
from bulkhead.proto.keys_pb2_grpc import KeysStub
from image_svc.decryption.processors import Plain, Routes, Step, process
from image_svc.decryption.watched import DecryptorGone as DecryptorGone
from image_svc.decryption.watched import Watched, signs
from image_svc.patience import Patience
from image_svc.purpose import Purpose
from image_svc.store import Layer

#: Longest wait, seconds, for any answer, and for the verdict on a layer whose last byte has been read.
TIMEOUT = 10.0
#: Bytes that may wait between decryptor and reader; the kernel gives what net.core.wmem_max allows.
_BUFFER = 1 << 20
#: Annotations that concern decryption; the decryptor is told no others.
ENCRYPTION = "org.opencontainers.image.enc."


class Opened:
    """A layer on its way through the decryptor.

    What comes out goes through a socket, of which the decryptor's end is kept here, too: of a decryptor that hangs the
    other end would otherwise never come to an end. (Whoever holds an end of a pipe cannot end it for the others.)
    """

    def __init__(
        self, reader: socket.socket, sink: socket.socket, work: layers.Work, layer: Layer, silence: float
    ) -> None:
        self._reader, self._sink = reader, sink
        self._watched = Watched(work, keys_pb2.DecryptResult, silence, layer.digest, self._end)

    def take(self) -> int:
        """Return the socket that the plain, still compressed layer comes out of, the caller's to close."""
        return self._reader.detach()

    def finish(self, patience: Patience) -> None:
        """Return if every byte that came out has been checked against MAC and digest, else raise why it may not count.

        DecryptorGone if it ended or fell silent meanwhile; DataLoss if the layer is not what was encrypted.
        """
        patience.check()
        self._watched.result(min(TIMEOUT, patience.left))

    def close(self) -> None:
        """Hang up."""
        self._watched.close()
        self._reader.close()
        self._sink.close()

    def _end(self) -> None:
        """Have the reader come to the end of what was written."""
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)


class Gatekeeper:
    """Asks the decryptor before an encrypted image is pulled or run, and has it decrypt layers."""

    def __init__(self, state: Path, key_model: str, config: Config | None = None) -> None:
        config = config or Config()
        self._routes, self._options = Routes(config), config.bulkhead
        self._stub = KeysStub(rpc.channel(str(paths.service_socket(state, "decryptor"))))
        self._socket = str(paths.layer_socket(state))
        self._key_model = key_model

    def check(self, image: str, purpose: Purpose, encrypted: Iterable[Layer], patience: Patience | None = None) -> None:
        """Raise the decryptor's verdict unless it has a key for every encrypted layer.

        With an empty `key_model` nothing is asked: decryption is switched off on this node.
        """
        locked = [
            layer for layer in encrypted if any(step.program is None for step in self._routes.of(layer.media_type))
        ]
        if not locked:
            return
        if not self._key_model:
            text = f"{image}: layer {locked[0].digest} is encrypted and image_decryption.key_model is empty"
            raise FailedPrecondition(text)
        request = keys_pb2.CheckRequest(use=purpose.use(image), layers=[_asked(each) for each in locked])
        left = patience.left if patience else math.inf
        # One that hangs is not waited for as long as tokens and key providers may take.
        self.ping(timeout=min(TIMEOUT, left))
        timeout = min(layers.image_bound(self._options.key_timeout) + layers.GRACE, left)
        rpc.call(self._stub.Check, request, service="decryptor", timeout=timeout)

    def decoder(self, layer: Layer, image: str, purpose: Purpose) -> "Decoder | None":
        """Return what turns a layer into a plain one; None for one that is unpacked as it is."""
        steps = self._routes.of(layer.media_type)
        return Decoder(self, steps, layer, image, purpose) if steps else None

    def step(
        self, step: Step, layer: Layer, image: str, purpose: Purpose, source: int, patience: Patience
    ) -> AbstractContextManager[Plain]:
        """Have one step done on what comes out of `source`."""
        if step.program is None:
            return self.decrypt(layer, image, purpose, source, patience)
        return process(step, layer, source, payload=bool(self._key_model))

    @contextmanager
    def decrypt(self, layer: Layer, image: str, purpose: Purpose, source: int, patience: Patience) -> Iterator[Opened]:
        """Have the ciphertext that comes out of `source` decrypted; the block reads it and asks how it ended.

        Raises the decryptor's refusal. The caller closes its `source` before it waits for the end.
        """
        request = keys_pb2.DecryptRequest(use=purpose.use(image), layer=_asked(layer))
        reader, sink = socket.socketpair()
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        try:
            work = self._begin(request, source, sink.fileno(), patience)
            try:
                opened = Opened(reader, sink, work, layer, self._options.decryptor_silence)
            except BaseException:
                work.close()
                raise
        except BaseException:
            reader.close()
            sink.close()
            raise
        try:
            yield opened
        finally:
            opened.close()

    def ping(self, *, timeout: float = 5.0) -> None:
        """Return if the decryptor is there."""
        rpc.call(self._stub.ListKeys, keys_pb2.ListKeysRequest(), service="decryptor", timeout=timeout)

    def _begin(self, request: keys_pb2.DecryptRequest, source: int, sink: int, patience: Patience) -> layers.Work:
        limit = min(layers.key_bound(self._options.key_timeout) + layers.GRACE, patience.left)
        alive = signs(self._options.decryptor_silence)
        try:
            work = layers.decrypt(self._socket, request, source, sink, limit, alive)
        except Unavailable as error:
            raise DecryptorGone(str(error)) from error
        try:
            work.started(limit)
        except BulkheadError as error:
            work.close()
            patience.check()
            if isinstance(error, Unavailable | layers.Silent):
                raise DecryptorGone(str(error)) from error
            raise
        return work


class Decoder:
    """What makes a plain layer of one, as often as it is begun: each step reads what the one before it writes."""

    def __init__(
        self, gatekeeper: Gatekeeper, steps: Sequence[Step], layer: Layer, image: str, purpose: Purpose
    ) -> None:
        self._gatekeeper = gatekeeper
        self._steps = steps
        self._of = (layer, image, purpose)

    @contextmanager
    def open(self, source: int, patience: Patience) -> Iterator["Chain"]:
        """Begin with what comes out of `source`, which stays the caller's to close."""
        with ExitStack() as held:
            chain: list[Plain] = []
            for step in self._steps:
                try:
                    begun = held.enter_context(self._gatekeeper.step(step, *self._of, source, patience))
                finally:
                    if chain:
                        os.close(source)
                chain.append(begun)
                source = begun.take()
            yield Chain(source, chain)

    def ping(self, *, timeout: float = 5.0) -> None:
        """Return if the decryptor is there, where it is needed."""
        if any(step.program is None for step in self._steps):
            self._gatekeeper.ping(timeout=timeout)


class Chain:
    """A layer on its way through all its steps."""

    def __init__(self, reader: int, steps: Sequence[Plain]) -> None:
        #: The plain layer comes out of this pipe, which is the reader's to close.
        self.reader = reader
        self._steps = steps

    def finish(self, patience: Patience) -> None:
        """Return if every step says that what it wrote counts, else raise the reason that explains the others."""
        failed: list[BulkheadError] = []
        for step in self._steps:
            try:
                step.finish(patience)
            except BulkheadError as error:
                failed.append(error)
        # A step whose reader went away was cut short by a later one.
        telling = [each for each in failed if not isinstance(each, Cancelled)]
        if failed:
            raise (telling or failed)[0]


def _asked(layer: Layer) -> keys_pb2.Layer:
    annotations = {name: value for name, value in layer.annotations.items() if name.startswith(ENCRYPTION)}
    return keys_pb2.Layer(
        digest=layer.digest, media_type=layer.media_type, annotations=annotations, diff_id=layer.diff_id
    )
