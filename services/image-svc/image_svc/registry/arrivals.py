"""What has arrived on an HTTP connection, for h11: the bytes of a body go on as they came, without a copy.

h11's own buffer copies each piece of a body three times, and httpcore once more what is a bytearray then. For a blob
from a registry nearby that is more work than its digest.
"""

import h11._connection
from h11._receivebuffer import ReceiveBuffer


class Arrivals(ReceiveBuffer):
    """h11's buffer, except that one piece alone stays the `bytes` that the socket gave.

    Whatever looks for lines has it made a bytearray first, which is what h11 works on.
    """

    _data: bytearray

    def __iadd__(self, piece: bytes | bytearray) -> "Arrivals":
        """Take what has come."""
        if not self._data and type(piece) is bytes:
            self._data = piece  # type: ignore[assignment] # every method that changes it makes it a bytearray first
        else:
            self._thaw()
            self._data += piece
        return self

    def maybe_extract_at_most(self, count: int) -> bytearray | None:
        """Return up to `count` bytes of a body, or None if none are there."""
        if 0 < len(self._data) <= count:
            everything, self._data = self._data, bytearray()
            self._next_line_search = self._multiple_lines_search = 0
            return everything
        self._thaw()
        return super().maybe_extract_at_most(count)

    def maybe_extract_next_line(self) -> bytearray | None:
        """Return the first line, or None if it is not all there."""
        self._thaw()
        return super().maybe_extract_next_line()

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines up to the first empty one, or None if that is not there."""
        self._thaw()
        return super().maybe_extract_lines()

    def _thaw(self) -> None:
        if type(self._data) is not bytearray:
            self._data = bytearray(self._data)


def install() -> None:
    """Have every connection that h11 reads from now on, in this process, keep what arrives like this."""
    h11._connection.ReceiveBuffer = Arrivals  # type: ignore[attr-defined] # h11's own import; held by a test
