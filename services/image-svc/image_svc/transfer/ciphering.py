"""Single layers through the decryptor, from one blob of the content store into another."""

import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

from bulkhead import layers, paths
from bulkhead.errors import DataLoss
from bulkhead.proto import keys_pb2
from image_svc.decryption.gatekeeper import ENCRYPTION, TIMEOUT
from image_svc.decryption.watched import Watched, signs
from image_svc.oci import media
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import LayerProgress, LayerState
from image_svc.registry.repository import Descriptor
from image_svc.transfer.staging import Staging

_PIECE = 1 << 20
#: Milliseconds between looks at whether anybody still waits for a decryptor that writes nothing.
_LOOK = 1000

_Result = TypeVar("_Result", keys_pb2.EncryptResult, keys_pb2.DecryptResult)


@dataclass(frozen=True)
class Target:
    """A layer to be turned, and what it will be called."""

    layer: Descriptor
    #: Its media type as an OCI manifest has it.
    media_type: str
    #: Out of the image's configuration; "" if that does not say.
    diff_id: str = ""


@dataclass(frozen=True)
class Turned:
    """What a layer's descriptor is to say now; of its annotations, those that concern encryption."""

    digest: str
    size: int
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)


class Ciphers:
    """Encrypts and decrypts the layers of one image for one caller."""

    def __init__(self, parts: Parts, staging: Staging, use: keys_pb2.Use, patience: Patience) -> None:
        self._content = parts.content
        self._socket = str(paths.layer_socket(parts.config.state))
        options = parts.config.bulkhead
        self._bound, self._silence = layers.key_bound(options.key_timeout) + layers.GRACE, options.decryptor_silence
        self._staging = staging
        self._use = use
        self._patience = patience

    def encrypt(self, target: Target, recipients: Sequence[keys_pb2.Recipient], progress: LayerProgress) -> Turned:
        """Encrypt a plain layer under a new key, or wrap the key of an encrypted one for more recipients.

        The latter takes a grant of root's: PermissionDenied, and FailedPrecondition without a key that opens it.
        """
        if media.is_encrypted(target.media_type):
            more = keys_pb2.RecipientsRequest(use=self._use, layer=_asked(target), recipients=recipients)
            added = layers.add_recipients(self._socket, more, min(self._bound, self._patience.left))
            progress.received, progress.state = progress.size, LayerState.UNPACKED
            return Turned(target.layer.digest, target.layer.size, target.media_type, added.annotations)
        request = keys_pb2.EncryptRequest(use=self._use, layer=_asked(target), recipients=recipients)

        def begin(source: int, sink: int, timeout: float) -> layers.Work:
            return layers.encrypt(self._socket, request, source, sink, timeout, signs(self._silence))

        made = self._turn(target, begin, keys_pb2.EncryptResult, progress)
        return Turned(made.digest, made.size, made.media_type, made.annotations)

    def decrypt(self, target: Target, progress: LayerProgress) -> Turned:
        """Decrypt a layer; DataLoss, with nothing kept, if it is not what was encrypted."""
        request = keys_pb2.DecryptRequest(use=self._use, layer=_asked(target))

        def begin(source: int, sink: int, timeout: float) -> layers.Work:
            return layers.decrypt(self._socket, request, source, sink, timeout, signs(self._silence))

        made = self._turn(target, begin, keys_pb2.DecryptResult, progress)
        return Turned(made.digest, made.size, media.plain_type(target.media_type))

    def _turn(
        self,
        target: Target,
        begin: Callable[[int, int, float], layers.Work],
        kind: type[_Result],
        progress: LayerProgress,
    ) -> _Result:
        """Send a blob through the decryptor and store what comes out, once its verdict is there."""
        limit = min(self._bound, self._patience.left)
        source = os.open(self._content.path(target.layer.digest), os.O_RDONLY | os.O_CLOEXEC)
        reader, sink = os.pipe2(os.O_CLOEXEC)
        results: list[_Result] = []
        try:
            try:
                work = begin(source, sink, limit)
            finally:
                os.close(source)
                os.close(sink)
            with work:
                work.started(limit)
                progress.state = LayerState.DOWNLOADING
                watched = Watched(work, kind, self._silence, target.layer.digest, lambda: None)
                with closing(watched):
                    pieces = self._pieces(reader, watched, results, progress)
                    staged = self._staging.take(target.layer.digest, target.layer.size, pieces)
        except BaseException:
            progress.state = LayerState.FAILED
            raise
        finally:
            os.close(reader)
        if (staged.digest, staged.size) != (results[0].digest, results[0].size):
            found = f"{staged.size} bytes of {staged.digest}"
            raise DataLoss(f"layer {target.layer.digest}: {found} arrived, the decryptor wrote {results[0].digest}")
        progress.state = LayerState.UNPACKED
        return results[0]

    def _pieces(
        self, reader: int, watched: Watched[_Result], results: list[_Result], progress: LayerProgress
    ) -> Iterator[bytes]:
        """Yield what comes out of the decryptor, and at its end raise what it says of it: no blob before that."""
        for piece in pieces(reader, self._patience, watched.check):
            progress.received += len(piece)
            yield piece
        results.append(watched.result(TIMEOUT))


def pieces(reader: int, patience: Patience, check: Callable[[], None]) -> Iterator[bytes]:
    """Yield what comes out of a pipe until its end, or raise once nobody has patience any more or the `check` fails.

    A decryptor that is stopped writes nothing and closes nothing.
    """
    ready = select.poll()
    ready.register(reader, select.POLLIN)
    while True:
        patience.check()
        if not ready.poll(_LOOK):
            check()
            continue
        if not (piece := os.read(reader, _PIECE)):
            return
        yield piece


def _asked(target: Target) -> keys_pb2.Layer:
    annotations = {key: value for key, value in target.layer.annotations.items() if key.startswith(ENCRYPTION)}
    return keys_pb2.Layer(
        digest=target.layer.digest, media_type=target.media_type, annotations=annotations, diff_id=target.diff_id
    )
