"""Log lines: one record is one line, whatever an image or a registry has put into it."""

import json
import logging

import pytest

from bulkhead.log import JsonFormatter, TextFormatter, correlation


def record(message: str, **fields: object) -> logging.LogRecord:
    """Return a record."""
    return logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "t", **fields})


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_one_line(formatter: logging.Formatter) -> None:
    """Line ends and terminal escapes in the message or a field do not reach the log as they are."""
    hostile = "a\nb\rc\x1b[2Jd\u2028e\x85f"
    line = formatter.format(record(hostile, image=hostile))
    assert not {"\n", "\r", "\x1b"} & set(line)
    if isinstance(formatter, TextFormatter):
        assert line.splitlines() == [line]
        assert r"a\nb\rc\x1b[2Jd\u2028e\x85f image=a\nb" in line
    else:
        assert json.loads(line)["image"] == hostile


def test_correlation() -> None:
    """A line carries the id of its call."""
    token = correlation.set("c0ffee")
    try:
        assert TextFormatter().format(record("m")).endswith("t: m correlation=c0ffee")
    finally:
        correlation.reset(token)
