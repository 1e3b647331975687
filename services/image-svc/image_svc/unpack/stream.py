"""The uncompressed tar stream of a layer: counted, hashed, and taken in large pieces into the same memory."""

import hashlib
import os
from collections.abc import Callable

from bulkhead.errors import DataLoss, ResourceExhausted
from image_svc.unpack import linux

_CAPACITY = 256 * 1024
#: Bytes of a file from which on it is large, and of it that are sent to the disk together.
_LARGE, _PIECE = 256 * 1024, 1024 * 1024
BLOCK = 512


class Stream:
    """Takes bytes from `fill(room)`, which returns 0 at the end; `limit` bytes in all, then ResourceExhausted."""

    def __init__(self, fill: Callable[[memoryview], int], limit: int, algorithm: str = "sha256") -> None:
        self._fill_from = fill
        self._limit = limit
        self._hash = hashlib.new(algorithm)
        self._memory = memoryview(bytearray(_CAPACITY))
        self._position = self._end = 0
        #: Bytes taken so far.
        self.total = 0

    @property
    def digest(self) -> str:
        """The digest of everything taken so far, `<algorithm>:<hex>`."""
        return f"{self._hash.name}:{self._hash.hexdigest()}"

    def block(self) -> bytes:
        """Return the next 512 bytes, or b"" if the stream ends here; DataLoss if it ends before they do."""
        end = self._position + BLOCK
        if end > self._end:
            if not self._fill(BLOCK):
                return b""
            end = BLOCK
        piece = bytes(self._memory[end - BLOCK : end])
        self._position = end
        return piece

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, which the caller has bounded, and skip what pads them to a block."""
        parts = []
        left = size
        while left:
            part = self._some(left)
            parts.append(bytes(part))
            left -= len(part)
        self._skip(-size % BLOCK)
        return b"".join(parts)

    def copy(self, size: int, output: int) -> None:
        """Write the next `size` bytes to a new file and skip what pads them to a block.

        A large file's way to the disk begins while it is written, a piece at a time: the disk is kept busy beside the
        work on what comes after, and never given so much at once that it makes this process wait.
        """
        end = self._position + size
        if end <= self._end:  # as most files are, it is here as a whole
            if os.write(output, self._memory[self._position : end]) == size:
                self._position = end
                self.skip_padding(size)
                return
            os.lseek(output, 0, os.SEEK_SET)
        begun = 0
        while size - begun >= _LARGE:
            piece = min(_PIECE, size - begun)
            self.pour(piece, output)
            linux.sync_file_range(output, begun, piece)
            begun += piece
        self.pour(size - begun, output)
        self.skip_padding(size)

    def pour(self, size: int, output: int) -> None:
        """Write the next `size` bytes to a descriptor."""
        left = size
        while left:
            part = self._some(left)
            left -= len(part)
            while part:
                part = part[os.write(output, part) :]

    def skip(self, size: int) -> None:
        """Pass over `size` bytes and what pads them to a block."""
        self._skip(size + -size % BLOCK)

    def skip_padding(self, size: int) -> None:
        """Pass over what pads `size` bytes to a block."""
        self._skip(-size % BLOCK)

    def drain(self) -> None:
        """Read to the end, so that the digest is that of everything."""
        self._position = self._end
        while self._fill(1):
            self._position = self._end

    def _some(self, limit: int) -> memoryview:
        """Return between 1 and `limit` bytes, good until the next call; DataLoss at the end."""
        if self._position == self._end and not self._fill(1):
            raise DataLoss(_CUT)
        begin = self._position
        self._position = min(begin + limit, self._end)
        return self._memory[begin : self._position]

    def _skip(self, size: int) -> None:
        left = size
        while left:
            left -= len(self._some(left))

    def _fill(self, need: int) -> bool:
        """Make at least `need` unread bytes available; False at a clean end, DataLoss at one within them."""
        have = self._end - self._position
        if have:
            self._memory[:have] = self._memory[self._position : self._end]
        self._position, self._end = 0, have
        while self._end < need:
            count = self._fill_from(self._memory[self._end :])
            if not count:
                if self._end:
                    raise DataLoss(_CUT)
                return False
            fresh = self._memory[self._end : self._end + count]
            self._hash.update(fresh)
            self._end += count
            self.total += count
            if self.total > self._limit:
                raise ResourceExhausted(f"layer is larger than {self._limit} bytes unpacked")
        return True


_CUT = "layer ends in the middle of an entry: the tar stream is cut"
