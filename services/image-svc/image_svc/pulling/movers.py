"""The threads that move a pull's bytes, few of them at a time, so that a call comes to Python's interpreter lock.

A thread that moves bytes gives that lock away for each system call and has it back some microseconds later. One that
has slept for it is woken meanwhile, finds no processor at once, and finds the lock taken when it has one. With a few
such threads it is always taken: a call was seen to wait for 33 ms to be noticed at all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from bulkhead.errors import DeadlineExceeded
from image_svc.patience import Patience

#: Half of the processors: hashes and writes give the lock away, so more than one may be of use, and whoever unpacks
#: needs processors as well.
AT_ONCE = max(1, len(os.sched_getaffinity(0)) // 2)

# A queue, since its waiters sleep without the lock, which those of a threading.Semaphore wake up for. `Slots` could be
# waited for until somebody calls off, but makes a future and an event each time: too much for every 256 KiB.
_turns: SimpleQueue[int] = SimpleQueue()
for _number in range(AT_ONCE):
    _turns.put(_number)


@contextmanager
def moving(patience: Patience, what: str) -> Iterator[None]:
    """Be one of those that move bytes; DeadlineExceeded, naming `what`, if those before never come to an end."""
    try:
        turn = _turns.get(timeout=patience.left)
    except Empty:
        if patience.cancelled:
            patience.check()
        raise DeadlineExceeded(f"{what}: the disk takes nothing") from None
    try:
        yield
    finally:
        _turns.put(turn)
