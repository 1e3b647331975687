"""Terminal sizes as clients send them: JSON objects {"Width": columns, "Height": rows}, one after the other."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from stream_svc.shim import Size

#: Bytes that may wait for the end of an object.
_LIMIT = 4096


@dataclass
class Sizes:
    """Cuts a byte stream into sizes; what is no size is dropped."""

    _text: str = ""

    def feed(self, data: bytes) -> Iterator[Size]:
        """Return the sizes that these bytes complete."""
        self._text += data.decode("utf-8", "replace")
        while self._text:
            self._text = self._text.lstrip()
            try:
                value, end = json.JSONDecoder().raw_decode(self._text)
            except (ValueError, RecursionError):
                if len(self._text) > _LIMIT or not self._text.startswith("{"):
                    self._text = ""
                return
            self._text = self._text[end:]
            if (size := _size(value)) is not None:
                yield size


def _size(value: object) -> Size | None:
    if not isinstance(value, dict):
        return None
    # Go's decoder, for which clients write, does not mind the case of the keys.
    fields = {key.lower(): number for key, number in value.items()}
    width, height = fields.get("width"), fields.get("height")
    if isinstance(width, int) and isinstance(height, int) and 0 < width < 65536 and 0 < height < 65536:
        return Size(width, height)
    return None
