"""The CRI log: every byte of a stream once, in lines the kubelet parses."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition
from sandbox_svc.shim import logs
from sandbox_svc.shim.logs import Formatter, Lines, LogFile, timestamp

LINE = re.compile(rb"\A(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)\Z", re.DOTALL)


def parse(pieces: Lines) -> list[tuple[bytes, bytes]]:
    """Return tag and text of each line."""
    raw = b"".join(pieces)
    assert raw == b"" or raw.endswith(b"\n")
    found = []
    for line in raw.split(b"\n")[:-1]:
        match = LINE.match(line)
        assert match, line
        found.append((match[3], match[4]))
    return found


def joined(lines: list[tuple[bytes, bytes]]) -> bytes:
    """Return the stream that these lines stand for."""
    return b"".join(text + (b"\n" if tag == b"F" else b"") for tag, text in lines)


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"\n\n", b"a" * 50 + b"\n"])), max_size=20),
    st.integers(1, 30),
)
def test_every_byte_once_and_no_piece_too_long(reads: list[bytes], limit: int) -> None:
    """However a stream is read, its log stands for it, and no piece is longer than the limit."""
    formatter = Formatter("stdout", limit)
    lines = parse([piece for data in reads for piece in formatter.feed(data, 1)] + formatter.finish(2))

    assert joined(lines) == b"".join(reads)
    assert all(len(text) <= limit for _, text in lines)
    assert all(len(text) == limit for tag, text in lines[:-1] if tag == b"P")


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    """Only what is longer is cut, and the last piece is tagged F."""
    formatter = Formatter("stdout", 4)

    assert parse(formatter.feed(b"abcd\nabcde\nabcdabcd\n", 0)) == [
        (b"F", b"abcd"),
        (b"P", b"abcd"),
        (b"F", b"e"),
        (b"P", b"abcd"),
        (b"F", b"abcd"),
    ]


def test_an_unfinished_line_waits_for_its_end() -> None:
    """Nothing is written of a short line without a line feed until it comes, or the stream ends."""
    formatter = Formatter("stderr", 100)

    assert formatter.feed(b"half", 0) == []
    assert parse(formatter.feed(b" whole\nrest", 0)) == [(b"F", b"half whole")]
    assert parse(formatter.finish(0)) == [(b"P", b"rest")]
    assert formatter.finish(0) == []


@pytest.mark.parametrize("unlimited", [0, -1])
def test_no_limit_still_bounds_memory(unlimited: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configured limit an endless line is written in large pieces."""
    monkeypatch.setattr(logs, "PIECE_LIMIT", 64)
    formatter = Formatter("stdout", unlimited)

    assert parse(formatter.feed(b"x" * 130, 0)) == [(b"P", b"x" * 64), (b"P", b"x" * 64)]


def test_timestamps_are_utc_with_nine_decimals() -> None:
    """The kubelet's RFC3339Nano takes them, and they sort as text."""
    assert timestamp(1_700_000_000_000_000_042) == b"2023-11-14T22:13:20.000000042Z"
    assert timestamp(1_700_000_001_500_000_000) == b"2023-11-14T22:13:21.500000000Z"


def test_reopen_follows_a_rename(tmp_path: Path) -> None:
    """After the rotation the old file is complete and the new one, mode 0640, gets what follows."""

    path = tmp_path / "log"
    file = LogFile(str(path))
    file.write(b"one\n")
    path.rename(path.with_suffix(".1"))
    file.write(b"two\n")
    file.reopen()
    file.write(b"three\n")
    file.close()

    assert path.with_suffix(".1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_takes_a_part_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short write, as on a disk that is nearly full, is followed by the rest."""
    monkeypatch.setattr(os, "writev", lambda fd, parts: os.write(fd, b"".join(parts)[:3]))
    file = LogFile(str(tmp_path / "log"))
    file.write(b"one ", memoryview(b"line\nand more")[:5])
    file.close()

    assert (tmp_path / "log").read_bytes() == b"one line\n"


def test_without_a_path_everything_is_dropped() -> None:
    """An empty log path is drained all the same."""
    file = LogFile("")
    file.write(b"x")
    file.reopen()
    file.close()


def test_a_log_is_a_file_and_nothing_else(tmp_path: Path) -> None:
    """A container with the log directory mounted cannot have root append to another file, nor hang the shim."""
    (tmp_path / "victim").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "read")
    reader = os.open(tmp_path / "read", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "pipe", "read"):
        with pytest.raises(FailedPrecondition, match=name):
            LogFile(str(tmp_path / name))
    os.close(reader)
    log = LogFile(str(tmp_path / "log"))
    (tmp_path / "log").rename(tmp_path / "old")
    (tmp_path / "log").symlink_to(tmp_path / "victim")
    with pytest.raises(FailedPrecondition):
        log.reopen()
    log.write(b"still here\n")
    log.close()
    assert (tmp_path / "victim").read_text() == ""
    assert (tmp_path / "old").read_text() == "still here\n"
