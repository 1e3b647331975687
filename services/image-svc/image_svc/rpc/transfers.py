"""How far transfers are, as messages: work in a thread of its own, told about while it goes on."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc

from bulkhead.errors import InvalidArgument
from bulkhead.proto import images_pb2
from image_svc import threads
from image_svc.oci import reference
from image_svc.pulling.progress import LayerProgress, LayerState, Progress, Pulls, PullState

#: Seconds between two looks at a transfer's progress.
PERIOD = 0.15
_INTERVAL, _SHORTEST, _LONGEST = 500, 100, 60_000

_STAGES = {
    PullState.RESOLVING: images_pb2.Transfer.RESOLVING,
    PullState.CHECKING: images_pb2.Transfer.RESOLVING,
    PullState.FETCHING: images_pb2.Transfer.MOVING,
    PullState.COMMITTING: images_pb2.Transfer.COMMITTING,
    PullState.DONE: images_pb2.Transfer.DONE,
    PullState.FAILED: images_pb2.Transfer.FAILED,
}
_STATES = {
    LayerState.WAITING: images_pb2.Part.WAITING,
    LayerState.DOWNLOADING: images_pb2.Part.MOVING,
    LayerState.UNPACKING: images_pb2.Part.UNPACKING,
    LayerState.UNPACKED: images_pb2.Part.DONE,
    LayerState.PRESENT: images_pb2.Part.PRESENT,
    LayerState.FAILED: images_pb2.Part.FAILED,
}

Work = Callable[[Callable[[Progress], None]], images_pb2.TransferResult]


def message(progress: Progress) -> images_pb2.Transfer:
    """Return a transfer as it is now."""
    return images_pb2.Transfer(
        id=f"{int(progress.began * 1e6):x}-{id(progress):x}",
        image=progress.reference,
        stage=_STAGES[progress.state],
        parts=[_part(layer) for layer in progress.layers],
        started_at=int(progress.began * 1e9),
        error=str(progress.error or ""),
    )


def _part(layer: LayerProgress) -> images_pb2.Part:
    state = _STATES[layer.state]
    return images_pb2.Part(digest=layer.digest, size=layer.size, done=layer.received, state=state, kind="layer")


def stream(work: Work, period: float = PERIOD) -> Iterator[images_pb2.TransferEvent]:
    """Run `work` and yield its progress whenever that has changed, and its result at the end; its error is raised.

    `work` is handed a function that takes the Progress to show, which it may call again for a further part.
    """
    shown: list[Progress] = []
    result: Future[images_pb2.TransferResult] = Future()

    def run() -> None:
        try:
            result.set_result(work(shown.append))
        except BaseException as error:  # raised where the stream is read
            result.set_exception(error)

    ended = threading.Event()
    result.add_done_callback(lambda _: ended.set())
    threads.start(contextvars.copy_context().run, "transfer", run)
    last: list[images_pb2.Transfer] = []
    over = False
    while not over:
        over = ended.wait(period)
        for number, progress in enumerate(list(shown)):
            now = message(progress)
            if number == len(last):
                last.append(images_pb2.Transfer())
            if now != last[number]:
                last[number] = now
                yield images_pb2.TransferEvent(progress=now)
    yield images_pb2.TransferEvent(result=result.result())


def _is_of(pull: Progress, image: str) -> bool:
    """Whether a pull, whose name is as its caller wrote it, is of an image by its complete name ("" for any)."""
    return not image or reference.complete(pull.reference) == image


def watch(
    pulls: Pulls, request: images_pb2.WatchPullsRequest, context: grpc.ServicerContext
) -> Iterator[images_pb2.WatchPullsResponse]:
    """Yield all pulls under way: at once, and after each change, until the caller hangs up."""
    interval = request.interval_ms or _INTERVAL
    if not _SHORTEST <= interval <= _LONGEST:
        raise InvalidArgument(f"interval_ms is {interval}, expected {_SHORTEST} to {_LONGEST}, or 0")
    gone = threading.Event()
    if not context.add_callback(gone.set):
        return
    known: dict[int, Progress] = {}
    before: images_pb2.WatchPullsResponse | None = None
    while not gone.is_set():
        began = time.monotonic()
        current = {id(each): each for each in pulls.current() if _is_of(each, request.image)}
        # One that ended since is shown once more, as it ended.
        known |= current
        now = images_pb2.WatchPullsResponse(pulls=[message(each) for each in known.values()])
        known = current
        if now != before:
            before = now
            yield now
        gone.wait(max(interval / 1000 - (time.monotonic() - began), 0.01))
