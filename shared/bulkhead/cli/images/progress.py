"""How a transfer goes on, shown: bars on a terminal, now and then a plain line elsewhere, or JSON, or nothing."""

import json
import sys
import time
from typing import Any, Protocol, TextIO

from google.protobuf import json_format
from google.protobuf.message import Message

from bulkhead.cli.images import text
from bulkhead.cli.images.stages import STATES, amounts
from bulkhead.proto import images_pb2 as pb

_THERE = frozenset({pb.Part.DONE, pb.Part.PRESENT})
#: Seconds between plain lines while bytes move.
PERIOD = 5.0


class Display(Protocol):
    """Shows transfers."""

    def show(self, transfer: pb.Transfer) -> None:
        """Show a transfer as it is now."""

    def bytes(self, done: int, total: int) -> None:
        """Show how much of a file has been read or written; a total of 0 is not known."""

    def close(self) -> None:
        """Come to an end, and leave the last state to be read."""


class Nothing:
    """Shows nothing."""

    def show(self, transfer: pb.Transfer) -> None:
        """Show nothing."""

    def bytes(self, done: int, total: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class Lines:
    """Writes a line for each layer that is done, and every few seconds how far all of it is."""

    def __init__(self, verb: str, out: TextIO, period: float = PERIOD) -> None:
        self._verb = verb
        self._out = out
        self._period = period
        self._states: dict[str, int] = {}
        self._said = 0.0
        self._began = time.monotonic()
        self._first: int | None = None

    def show(self, transfer: pb.Transfer) -> None:
        """Write what changed."""
        for part in transfer.parts:
            if self._states.get(part.digest) != part.state:
                before, self._states[part.digest] = self._states.get(part.digest), part.state
                # What was fetched for one platform is there for the next one.
                if part.state == pb.Part.FAILED or (part.state in _THERE and before not in _THERE):
                    self._say(f"{text.short(part.digest)}: {STATES[part.state]} ({text.size(part.size)})")
        done, total = amounts([transfer])
        if total and done < total:
            self._sum(transfer.image, done, total)

    def bytes(self, done: int, total: int) -> None:
        """Write how much there is."""
        self._sum("archive", done, total)

    def close(self) -> None:
        """Write nothing more."""

    def _sum(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._began, self._said = done, now, now
        if now - self._said < self._period:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._began, 0.001)
        left = f", {text.duration((total - done) / rate)} left" if rate > 0 and total > done else ""
        of = f" of {text.size(total)}" if total else ""
        self._say(f"{what}: {self._verb} {text.size(done)}{of}, {text.size(rate)}/s{left}")

    def _say(self, line: str) -> None:
        self._out.write(f"{text.printable(line)}\n")
        self._out.flush()


class Json:
    """Writes every event as one JSON object a line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, transfer: pb.Transfer) -> None:
        """Write the transfer."""
        self._out.write(f"{as_json(pb.TransferEvent(progress=transfer))}\n")
        self._out.flush()

    def bytes(self, done: int, total: int) -> None:
        """Write nothing: events are about images."""

    def close(self) -> None:
        """Write nothing more."""


def as_json(message: Message, *, indent: int | None = None) -> str:
    """Return a message as JSON, fields without a value included, under the names of the proto."""
    return json.dumps(document(message), indent=indent)


def document(message: Message) -> dict[str, Any]:
    """Return a message as a JSON object; numbers of 64 bits are numbers, which protobuf's own JSON makes texts of."""
    made: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(message, made)


def _numbers(message: Message, made: dict[str, Any]) -> dict[str, Any]:
    for field in message.DESCRIPTOR.fields:
        value = made.get(field.name)
        if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) and isinstance(value, str):
            made[field.name] = int(value)
        elif value and field.message_type is not None and not field.message_type.GetOptions().map_entry:
            inner = getattr(message, field.name)
            for one, shown in zip(inner, value, strict=True) if isinstance(value, list) else ((inner, value),):
                _numbers(one, shown)
    return made


def open_display(verb: str, *, quiet: bool, events: bool, plain: bool = False) -> Display:
    """Return the display that fits: standard error for people, so that standard output holds results only."""
    if events:
        return Json(sys.stdout)
    if quiet:
        return Nothing()
    if plain or not sys.stderr.isatty():
        return Lines(verb, sys.stderr)
    from bulkhead.cli.images.bars import Bars  # rich, which nothing but a terminal has a use for

    return Bars(verb)
