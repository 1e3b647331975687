"""CRI messages as Go's encoding/json writes them, which is how containerd and CRI-O keep a status in a checkpoint.

It is not the JSON mapping of protobuf: names are those of the proto, 64-bit integers and enums are numbers.
"""

import base64
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON values; what has its default is left out (`omitempty`)."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        elif field.is_repeated:
            found[field.name] = [_value(field, one) for one in value]
        else:
            found[field.name] = _value(field, value)
    return found


def timestamp(nanoseconds: int) -> str:
    """Return a time since 1970 as RFC 3339 with nanoseconds, as Go's time.Time has it; 0 is Go's zero time."""
    if not nanoseconds:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return plain(value)
    return base64.b64encode(value).decode() if field.type == FieldDescriptor.TYPE_BYTES else value
