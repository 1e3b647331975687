"""Logging for every service: one line a record, as text or JSON, with the correlation id of the CRI call."""

import contextvars
import json
import logging
import sys
import time
import uuid
from typing import TextIO

#: The id that follows one CRI call through every service; empty outside a call.
correlation: contextvars.ContextVar[str] = contextvars.ContextVar("correlation", default="")

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def new_correlation() -> str:
    """Return a fresh correlation id: 16 hex digits."""
    return uuid.uuid4().hex[:16]


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    fields = {k: v for k, v in vars(record).items() if k not in _STANDARD}
    if ident := correlation.get():
        fields["correlation"] = ident
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, msg, correlation and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`time level logger: message key=value …`, control characters escaped: one record cannot look like two."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, followed by the traceback if it carries one."""
        extra = "".join(f" {k}={v}" for k, v in _extra(record).items())
        text = f"{record.getMessage()}{extra}".translate(_ESCAPES)
        line = f"{_timestamp(record)} {record.levelname.lower():7} {record.name}: {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup(service: str, level: str = "info", style: str = "text", stream: TextIO | None = None) -> logging.Logger:
    """Send every logger to one stream (standard error by default) and return the service's own logger.

    level is a containerd level name (trace, debug, info, warn, error, fatal, panic); style is "text" or "json".
    """
    names = {"trace": "DEBUG", "warn": "WARNING", "fatal": "CRITICAL", "panic": "CRITICAL"}
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=names.get(level, level.upper()), handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return logging.getLogger(service)
