"""`bulkhead run`: its arguments, and the log file as what the container wrote."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.cli.__main__ import main, parser
from bulkhead.cli.run import session
from bulkhead.cli.run.log import Follower, parse
from bulkhead.errors import InvalidArgument

TIME = b"2026-01-01T00:00:00.000000000Z"


def test_arguments() -> None:
    """Everything after the name is the container's command, options included."""
    found = parser("run").parse_args(
        ["run", "--rm", "--key", "a", "--key", "b", "--env", "A=b", "img", "n", "sh", "--rm", "-c"]
    )
    assert (found.image, found.name, found.command) == ("img", "n", ["sh", "--rm", "-c"])
    assert (found.rm, found.key, found.env) == (True, ["a", "b"], ["A=b"])
    assert parser("run").parse_args(["run", "img", "n"]).command == []


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows examples that fit a terminal, and what the exit status means."""
    with pytest.raises(SystemExit):
        parser("run").parse_args(["run", "--help"])
    text = capsys.readouterr().out
    assert "bulkhead run --rm --key mykey.pem" in text
    assert "exit status" in text


def test_without_a_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody answers, one line says so, and the status is that of a container that could not be run."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 3\nroot = "{tmp_path}"\nstate = "{tmp_path}"\n[grpc]\naddress = "{tmp_path}/no.sock"\n'
    )
    assert main(["run", "--config", str(config), "img", "n"]) == session.NOT_RUN
    said = capsys.readouterr().err
    assert said.startswith(f"bulkhead: nobody answers at {tmp_path}/no.sock")
    assert said.count("\n") == 1


def test_pairs() -> None:
    """Variables and labels have a name and a value, which may be empty or have a = in it."""
    assert session._pairs(["A=b", "C=", "D=e=f"], "--env") == {"A": "b", "C": "", "D": "e=f"}
    for text in ("A", "=b", ""):
        with pytest.raises(InvalidArgument, match="--env"):
            session._pairs([text], "--env")


def test_a_log_as_it_grows(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Lines appear as they were written: to their stream, parts without a line feed, cut lines once they end."""
    path = tmp_path / "0.log"
    follower = Follower(path)
    assert not follower.show()
    path.write_bytes(TIME + b" stdout F one\n" + TIME + b" stderr F no\n" + TIME + b" stdout P ha")
    assert follower.show()
    assert capfdbinary.readouterr() == (b"one\n", b"no\n")
    with path.open("ab") as log:
        log.write(b"lf\n" + TIME + b" stdout F \n")
    assert follower.show()
    assert not follower.show()
    assert capfdbinary.readouterr() == (b"half\n", b"")


@given(st.binary().filter(lambda data: b"\n" not in data), st.booleans())
def test_any_line_comes_back(text: bytes, whole: bool) -> None:
    """Whatever a line holds, it is what was written."""
    line = TIME + b" stdout " + (b"F " if whole else b"P ") + text
    assert parse(line) == (b"stdout", text + b"\n" if whole else text)
