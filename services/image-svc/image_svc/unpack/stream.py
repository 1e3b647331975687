"""The uncompressed tar stream of a layer: counted, and read from a pipe in large pieces."""

import os

from bulkhead.errors import DataLoss, ResourceExhausted

_CHUNK = 256 * 1024
BLOCK = 512


class Stream:
    """Reads from a descriptor; `limit` bytes in all, then ResourceExhausted."""

    def __init__(self, fd: int, limit: int) -> None:
        self._fd = fd
        self._limit = limit
        self._buffer = b""
        self._position = 0
        #: Bytes taken from the descriptor so far.
        self.total = 0

    def block(self) -> bytes:
        """Return the next 512 bytes, or b"" if the stream ends here; DataLoss if it ends before they do."""
        end = self._position + BLOCK
        if end > len(self._buffer):
            if not self._fill(BLOCK):
                return b""
            end = BLOCK
        piece = self._buffer[end - BLOCK : end]
        self._position = end
        return piece

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, which the caller has bounded, and skip what pads them to a block."""
        if self._position + size > len(self._buffer) and not self._fill(size):
            raise DataLoss(_CUT)
        piece = self._buffer[self._position : self._position + size]
        self._position += size
        self._skip(-size % BLOCK)
        return piece

    def copy(self, size: int, output: int) -> None:
        """Write the next `size` bytes to a descriptor and skip what pads them to a block."""
        left = size
        while left:
            if self._position == len(self._buffer) and not self._fill(1):
                raise DataLoss(_CUT)
            end = min(self._position + left, len(self._buffer))
            written = os.write(output, memoryview(self._buffer)[self._position : end])
            self._position += written
            left -= written
        self._skip(-size % BLOCK)

    def skip(self, size: int) -> None:
        """Pass over `size` bytes and what pads them to a block."""
        self._skip(size + -size % BLOCK)

    def drain(self) -> None:
        """Read to the end, so that whoever feeds and hashes the stream sees no broken pipe."""
        self._position = len(self._buffer)
        while self._fill(1):
            self._position = len(self._buffer)

    def _skip(self, size: int) -> None:
        left = size
        while left > (here := len(self._buffer) - self._position):
            left -= here
            self._position = len(self._buffer)
            if not self._fill(1):
                raise DataLoss(_CUT)
        self._position += left

    def _fill(self, need: int) -> bool:
        """Make at least `need` unread bytes available; False at a clean end, DataLoss at one within them."""
        parts = [self._buffer[self._position :]]
        have = len(parts[0])
        while have < need:
            part = os.read(self._fd, _CHUNK)
            if not part:
                if have:
                    raise DataLoss(_CUT)
                return False
            self._count(len(part))
            parts.append(part)
            have += len(part)
        self._buffer = b"".join(parts)
        self._position = 0
        return True

    def _count(self, size: int) -> None:
        self.total += size
        if self.total > self._limit:
            raise ResourceExhausted(f"layer is larger than {self._limit} bytes unpacked")


_CUT = "layer ends in the middle of an entry: the tar stream is cut"
