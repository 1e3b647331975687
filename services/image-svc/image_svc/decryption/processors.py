"""`[stream_processors]`: what a layer goes through before it is a tar that can be unpacked, programs included.

The chain is containerd's: the entry that accepts a layer's media type turns it into the type that it returns, which is
looked up again. Entries that mean ctd-decoder are the decryptor's, and so are encrypted types that no entry accepts.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.any_pb2 import Any

from bulkhead import command, processors
from bulkhead.config.model import Config, StreamProcessor
from bulkhead.errors import FailedPrecondition, NotFound
from image_svc.oci import media
from image_svc.patience import Patience
from image_svc.store import Layer

#: Steps of one chain; more is a circle.
STEPS = 8
#: Seconds from the end of a program's output to its own end.
_END = 10.0
#: Ids of containerd's own entries for encrypted layers, to which it gives a payload (imgcrypt, payload.go).
_WITH_PAYLOAD = "io.containerd.ocicrypt.decoder.v1."
_PAYLOAD = "io.containerd.ocicrypt.v1.Payload"
_MEDIA_TYPE = "STREAM_PROCESSOR_MEDIATYPE"


@dataclass(frozen=True)
class Step:
    """One turn of a layer's bytes into others."""

    accepts: str
    #: The program; None for the decryptor.
    program: StreamProcessor | None = None


class Plain(Protocol):
    """A layer on its way through a step."""

    def take(self) -> int:
        """Return the pipe that its output comes out of, the caller's to close. Its end proves nothing."""

    def finish(self, patience: Patience) -> None:
        """Return if what came out counts, else raise why it does not; nobody may hold the pipe any more."""


class Routes:
    """The chains of one configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        media.processed(kind for each in processors.programs(config) for kind in each.accepts)

    def of(self, media_type: str) -> tuple[Step, ...]:
        """Return the steps of a layer of this type, none for one that is unpacked as it is.

        FailedPrecondition if they end in something that is no layer, or never end.
        """
        steps: list[Step] = []
        kind = media_type
        while len(steps) <= STEPS:
            entry = processors.for_media_type(self._config, kind)
            if entry is not None and entry.path and not processors.is_decoder(entry):
                steps.append(Step(kind, entry))
                kind = entry.returns
            elif media.is_encrypted(kind):
                steps.append(Step(kind))
                kind = (entry.returns if entry is not None else "") or media.plain_type(kind)
            elif media.is_layer(kind):
                return tuple(steps)
            else:
                text = f"layer media type {media_type[:200]!r}: stream_processors make {kind[:200]!r} of it"
                raise FailedPrecondition(f"{text}, which cannot be unpacked")
        raise FailedPrecondition(f"layer media type {media_type[:200]!r}: more than {STEPS} stream_processors in a row")


class Processed:
    """A layer on its way through a program."""

    def __init__(self, reader: int, program: command.Filter, where: str) -> None:
        self._reader, self._program, self._where = reader, program, where

    def take(self) -> int:
        """Return the pipe that its output comes out of, the caller's to close."""
        reader, self._reader = self._reader, -1
        return reader

    def finish(self, patience: Patience) -> None:
        """Return if the program ended well; FailedPrecondition with what it said on standard error."""
        result = self._program.wait(min(_END, patience.left))
        if result.returncode:
            raise FailedPrecondition(f"{self._where} failed with status {result.returncode}: {result.complaint}")

    def close(self) -> None:
        """Kill what is left of it."""
        if self._reader >= 0:
            os.close(self._reader)
        self._program.end()


@contextmanager
def process(step: Step, layer: Layer, source: int, *, payload: bool) -> Iterator[Processed]:
    """Have a program turn what comes out of `source` into what the block reads; it is killed when the block ends.

    It is started as containerd starts it: the blob on standard input, our environment and the entry's, the media type
    in STREAM_PROCESSOR_MEDIATYPE and, for containerd's own ids if there is a `payload` at all, that at descriptor 3.
    """
    entry = step.program
    assert entry is not None
    where = f"layer {layer.digest}: stream_processors.{entry.id!r} ({entry.path})"
    env = dict(os.environ) | dict(line.partition("=")[::2] for line in entry.env) | {_MEDIA_TYPE: step.accepts}
    given = _payload(layer) if payload and entry.id.startswith(_WITH_PAYLOAD) else None
    reader, sink = os.pipe2(os.O_CLOEXEC)
    try:
        program = command.Filter((entry.path, *entry.args), source=source, sink=sink, env=env, payload=given)
    except BaseException as error:
        os.close(reader)
        if isinstance(error, NotFound):
            raise FailedPrecondition(f"{where} cannot be started: {error}") from error
        raise
    finally:
        os.close(sink)
    made = Processed(reader, program, where)
    try:
        yield made
    finally:
        made.close()


def _payload(layer: Layer) -> bytes:
    """Return what imgcrypt's client sends for a layer to be decrypted with the node's keys."""
    descriptor = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": dict(layer.annotations),
    }
    document = {"DecryptConfig": {"Parameters": {}}, "Descriptor": descriptor}
    message = Any(type_url=_PAYLOAD, value=json.dumps(document).encode())
    return message.SerializeToString()
