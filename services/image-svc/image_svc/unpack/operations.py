"""What the helper does for image-svc: each operation is a generator of the steps that workers do for it.

A generator is resumed with a step's answer or its error, and its return value is the answer to image-svc. What it
does between the steps is quick and touches names only.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted
from image_svc.oci import digests
from image_svc.unpack import confine, decode, layer, linux, merge, opaque, protocol, removal, seccomp, settle, usage
from image_svc.unpack.confine import Confinement
from image_svc.unpack.directory import Snapshots, State
from image_svc.unpack.foreign import Foreign
from image_svc.unpack.protocol import Limits
from image_svc.unpack.ring import Ring
from image_svc.unpack.worker import Step, Task

Answer = dict[str, Any]
Running = Generator[Step, Answer, Answer]

#: Snapshots in one answer to `list` and in one question of `usage`: below the 64 KiB of a message.
PAGE = 1500
_SETTLE_SECONDS = 600.0
_COPY_SECONDS = 1800.0
_USAGE_SECONDS = 60.0
_SYNC_SECONDS = 300.0
_NEVER = 30 * 86400.0
#: Of processes that unpack: image-svc, which answers calls meanwhile, shall not wait for a processor behind them.
_NICENESS = 10
#: A list of directories may take this many bytes on disk beside the layer's own.
_FILE_SLACK = 1024 * 1024


@dataclass(frozen=True)
class Request:
    """One message of image-svc."""

    fields: dict[str, Any]
    descriptors: list[int]

    def name(self) -> str:
        """Return the snapshot it is about."""
        return protocol.name(self.fields.get("name"))

    def stack(self, key: str) -> tuple[str, list[str]]:
        """Return the snapshot and the layers below it, base first."""
        name, *below = protocol.names([self.fields.get("name"), *_list(self.fields.get(key))], protocol.MAX_LAYERS + 1)
        return name, below


class Operations:
    """The operations by name; `limits` bound what a request may ask for."""

    def __init__(self, snapshots: Snapshots, limits: Limits, exports: Mapping[str, Path] | None = None) -> None:
        """Work in that directory, and in those of proxy snapshotters, `exports` by their names."""
        self._snapshots = snapshots
        self._foreign = Foreign(exports or {})
        self._limits = limits
        self.by_name: dict[str, Callable[[Request], Running]] = {
            "unpack": self.unpack,
            "apply": self.apply,
            "settle": self.settle,
            "prepare": self.prepare,
            "copy": self.copy,
            "remove": self.remove,
            "usage": self.usage,
            "list": self.page,
            "sync": self.sync,
            "ping": self.ping,
        }

    def unpack(self, request: Request) -> Running:
        """Unpack a layer, then mark its opaque directories."""
        name, limits = request.name(), self._wanted_limits(request)
        source, algorithm = _stream(request)
        self._snapshots.begin(name)
        with contextlib.ExitStack() as stack:
            implicit = _closing(stack, self._snapshots.create(f"{name}/implicit"))
            hidden = _closing(stack, self._snapshots.create(f"{name}/opaque"))
            root = _closing(stack, self._snapshots.open(f"{name}/fs"))
            work = functools.partial(layer.unpack, implicit=implicit, opaque=hidden, limits=limits, algorithm=algorithm)
            counts = yield self._streaming(root, source, (implicit, hidden), work, limits)
            answer = protocol.unpacked(counts)
            if answer["opaque"]:
                yield self._marking(stack, name, root, limits.seconds)
        self._snapshots.unpacked(name)
        return answer

    def apply(self, request: Request) -> Running:
        """Unpack a layer into an empty directory of a proxy snapshotter, settle it and write it to disk."""
        limits, fields = self._wanted_limits(request), request.fields
        source, algorithm = _stream(request)
        place = self._foreign.place(fields.get("snapshotter"), fields.get("name"), fields.get("lowers"))
        with contextlib.closing(place):
            lists = (place.implicit, place.opaque)
            work = functools.partial(
                layer.unpack, implicit=place.implicit, opaque=place.opaque, limits=limits, algorithm=algorithm
            )
            counts = yield self._streaming(place.target, source, lists, work, limits)
            answer = protocol.unpacked(counts)
            if answer["opaque"]:
                os.lseek(place.opaque, 0, os.SEEK_SET)
                marking = Confinement(place.target, confine.OPAQUE, (place.opaque,), seconds=limits.seconds)
                yield Step(marking, functools.partial(opaque.mark, place.opaque), limits.seconds)
            yield from place.finish(answer["implicit"])
        return answer

    def _marking(self, stack: contextlib.ExitStack, name: str, root: int, seconds: float) -> Step:
        """Return the step that marks a layer's opaque directories."""
        listed = _closing(stack, self._snapshots.read(f"{name}/opaque"))
        marking = Confinement(root, confine.OPAQUE, (listed,), seconds=seconds)
        return Step(marking, functools.partial(opaque.mark, listed), seconds)

    def _streaming(
        self, root: int, source: int, lists: tuple[int, ...], work: Callable[[Ring], Answer], limits: Limits
    ) -> Step:
        """Return the step of two processes: one that decompresses the blob, and one that writes files below `root`."""
        ring = Ring()
        decoding = Confinement(
            self._snapshots.void,
            0,
            (source, *ring.filler),
            seconds=limits.seconds,
            niceness=_NICENESS,
            calls=seccomp.DECODING,
        )
        writing = Confinement(
            root,
            confine.FILES,
            (*ring.reader, *lists),
            seconds=limits.seconds,
            file_size=limits.bytes + _FILE_SLACK,
            niceness=_NICENESS,
        )
        return Step(
            writing,
            functools.partial(work, ring),
            limits.seconds,
            beside=Task(decoding, functools.partial(decode.decode, source, ring)),
            begun=ring.close,
        )

    def settle(self, request: Request) -> Running:
        """Settle the layers of a chain, each on those below it; one worker for all of them."""
        chain = protocol.names(_list(request.fields.get("chain")))
        states = {name: self._snapshots.state(name) for name in chain}
        for name, state in states.items():
            if state in (State.ABSENT, State.UNPACKING):
                raise NotFound(f"snapshot {name} is {state.value}")
        pending = [name for name in chain if states[name] is State.PENDING]
        settled = 0
        if any(self._snapshots.size(f"{name}/{kind}") for name in pending for kind in ("implicit", "opaque")):
            work = functools.partial(settle.settle_all, chain, pending)
            answer = yield self._across(confine.FILES, work, _SETTLE_SECONDS)
            settled = int(answer["settled"])
            for name in set(pending) & set(answer["grown"]):
                with contextlib.ExitStack() as stack:
                    root = _closing(stack, self._snapshots.open(f"{name}/fs"))
                    yield self._marking(stack, name, root, _SETTLE_SECONDS)
        for name in pending:
            self._snapshots.complete(name)
        return {"settled": settled}

    def prepare(self, request: Request) -> Running:
        """Make a writable snapshot."""
        name, chain = request.stack("chain")
        if self._may_begin(name, chain):
            self._snapshots.prepare(name, chain[-1] if chain else None)
        return {}
        yield

    def copy(self, request: Request) -> Running:
        """Make a writable snapshot that holds a copy of its layers."""
        name, chain = request.stack("chain")
        if self._may_begin(name, chain):
            self._snapshots.begin(name)
            yield self._across(confine.FILES, functools.partial(merge.merge, name, chain), _COPY_SECONDS)
            self._snapshots.complete(name)
        return {}

    def remove(self, request: Request) -> Running:
        """Throw a snapshot away."""
        return {"removed": self._snapshots.throw_away(request.name())}
        yield

    def usage(self, request: Request) -> Running:
        """Count what snapshots take."""
        names = protocol.names(_list(request.fields.get("names")), PAGE)
        answer = yield self._across(confine.LOOK, functools.partial(usage.count, names), _USAGE_SECONDS)
        return {"usages": {name: [int(value) for value in answer[name]] for name in names if name in answer}}

    def page(self, request: Request) -> Running:
        """List one page of snapshots."""
        page: list[tuple[str, bool]] = []
        after = request.fields.get("after", 0)
        if not isinstance(after, int):
            raise InvalidArgument(f"after is {after!r}, expected a number")
        for name in self._snapshots.names(after):
            page.append((name, self._snapshots.state(name) is State.COMPLETE))
            if len(page) == PAGE:
                break
        return {"snapshots": page}
        yield

    def sync(self, request: Request) -> Running:
        """Write the file system to disk."""
        return (yield self._across(0, _sync, _SYNC_SECONDS))

    def ping(self, request: Request) -> Running:
        """Answer."""
        return {}
        yield

    def empty_trash(self) -> Step | None:
        """Return the step that removes for good, with the trash as its root; None if there is nothing in it."""
        if not self._snapshots.trash_waits():
            return None
        confinement = Confinement(self._snapshots.trash, confine.REMOVE, seconds=_NEVER, idle=True)
        return Step(confinement, _empty, _NEVER)

    def _across(self, capabilities: int, work: Callable[[], Answer], seconds: float) -> Step:
        """Return a step whose root is the directory of all snapshots."""
        return Step(Confinement(self._snapshots.fd, capabilities, seconds=seconds), work, seconds)

    def _may_begin(self, name: str, chain: list[str]) -> bool:
        """Tell whether a writable snapshot has still to be made; its layers must be there."""
        state = self._snapshots.state(name)
        if state is State.PENDING:
            raise AlreadyExists(f"snapshot {name} is a layer")
        for layer_name in chain:
            self._snapshots.require(layer_name)
        return state is not State.COMPLETE

    def _wanted_limits(self, request: Request) -> Limits:
        asked = request.fields.get("limits", {})
        # NaN, which JSON as Python reads it has, is neither above nor below any limit.
        if not isinstance(asked, dict) or not all(type(v) in (int, float) and v == v for v in asked.values()):
            raise InvalidArgument("limits: expected numbers by name")
        try:
            limits = Limits(**asked).within(self._limits)
        except TypeError as error:
            raise InvalidArgument(f"limits: {error}") from error
        if min(dataclasses.astuple(limits)) <= 0:
            raise ResourceExhausted(f"limits leave no room: {limits}")
        return limits


def _sync() -> Answer:
    linux.syncfs(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    return {}


def _empty() -> Answer:
    return dict(removal.Bin().empty())


def _closing(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _stream(request: Request) -> tuple[int, str]:
    """Return the descriptor that a layer comes from, and the algorithm of its digest."""
    if len(request.descriptors) != 1:
        raise InvalidArgument(f"a layer came with {len(request.descriptors)} descriptors, expected the tar stream")
    algorithm = request.fields.get("algorithm", "sha256")
    if algorithm not in digests.LENGTHS:
        raise InvalidArgument(f"algorithm {str(algorithm)[:40]!r} is not one of {', '.join(digests.LENGTHS)}")
    return request.descriptors[0], algorithm


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidArgument(f"snapshot names are a {type(value).__name__}, expected a list")
    return value
