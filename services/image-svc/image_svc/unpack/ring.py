"""Memory that two processes share: one fills its slots with a tar stream, the other copies them out.

Made by the helper before it forks both. Numbers go over two pipes: how many bytes the next slot holds, and that a slot
is free again. The reader copies before it looks at a byte: whoever fills may be taken over by the blob it decompresses,
and must not change what was hashed before it is written.
"""

import mmap
import os
import struct
from contextlib import suppress

from bulkhead.errors import Aborted, DataLoss

SLOTS, SLOT = 4, 256 * 1024
#: How many bytes the next slot holds, 0 at the end, or the negative length of the error's text that follows.
_COUNT = struct.Struct("<i")
#: Bytes of an error's text.
_TEXT = 2000


class Ring:
    """The memory and both pipes; each process closes the ends that are the other's."""

    def __init__(self) -> None:
        """Make them."""
        self._memory = mmap.mmap(-1, SLOTS * SLOT)
        self._slots = [memoryview(self._memory)[n * SLOT : (n + 1) * SLOT] for n in range(SLOTS)]
        self._filled, self._filling = os.pipe()
        self._freed, self._freeing = os.pipe()
        self._next = 0
        #: Filling: slots that are free. Reading: bytes of the present slot, and how many of them were taken.
        self._free = SLOTS
        self._have = self._taken = 0

    @property
    def filler(self) -> tuple[int, int]:
        """The descriptors of the process that fills."""
        return self._filling, self._freed

    @property
    def reader(self) -> tuple[int, int]:
        """The descriptors of the process that reads."""
        return self._filled, self._freeing

    def close(self) -> None:
        """Let go of everything in this process."""
        for fd in (*self.filler, *self.reader):
            os.close(fd)
        for slot in self._slots:
            slot.release()
        self._memory.close()

    def slot(self) -> memoryview:
        """Return the next slot to fill, once it is free; BrokenPipeError if the reader has ended."""
        while not self._free:
            count = len(os.read(self._freed, SLOTS))
            if not count:
                raise BrokenPipeError
            self._free += count
        return self._slots[self._next]

    def filled(self, count: int) -> None:
        """Hand the slot over with so many bytes; 0 ends the stream."""
        self._free -= 1
        self._next = (self._next + 1) % SLOTS
        os.write(self._filling, _COUNT.pack(count))

    def fail(self, text: str) -> None:
        """End the stream with an error."""
        raw = text.encode(errors="replace")[:_TEXT]
        os.write(self._filling, _COUNT.pack(-len(raw)) + raw)

    def take(self, room: memoryview) -> int:
        """Copy bytes out, at most what there is room for; 0 at the end. DataLoss or Aborted say what failed."""
        if self._taken == self._have and not self._await():
            return 0
        count = min(len(room), self._have - self._taken)
        room[:count] = self._slots[self._next][self._taken : self._taken + count]
        self._taken += count
        if self._taken == self._have:
            self._next = (self._next + 1) % SLOTS
            with suppress(BrokenPipeError):  # whoever fills has said the last and gone
                os.write(self._freeing, b"f")
        return count

    def _await(self) -> bool:
        raw = os.read(self._filled, _COUNT.size)
        count = _COUNT.unpack(raw)[0] if len(raw) == _COUNT.size else SLOT + 1
        if count < 0:
            raise DataLoss(os.read(self._filled, min(-count, _TEXT)).decode(errors="replace"))
        if count > SLOT:
            raise Aborted("the process that decompresses the layer was killed")
        self._have, self._taken = count, 0
        return count > 0
