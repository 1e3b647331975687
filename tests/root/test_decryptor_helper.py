"""The helper that starts programs: they get what an order says and nothing else, and none outlives its time."""

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bulkhead import command
from bulkhead.errors import BulkheadError
from decryptor import landlock
from support.encrypted import eventually
from support.keeper import Keeper

pytestmark = pytest.mark.root

_PROGRAM = """
import json, os, sys, threading
from decryptor.helper import Helper
helper = Helper.fork()
for line in sys.stdin:
    order = json.loads(line)
    helper.hidden = tuple(order.get("hidden", ()))
    if order.get("end"):
        os.kill(helper.pid, 9)
        while helper.alive(): pass
    try:
        out = helper.run(order["args"], input=order.get("input", "").encode(), timeout=order.get("timeout", 10.0),
                         env=order.get("env"))
        print(json.dumps({"out": out.decode()}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
"""


def ask(*orders: Mapping[str, object]) -> list[dict[str, str]]:
    """Have a helper of its own carry out orders, one after the other; return its answers."""
    import json

    data = "".join(json.dumps(order) + "\n" for order in orders).encode()
    secret = {**os.environ, "SECRET": "hidden", "LD_PRELOAD": ""}
    result = command.run([sys.executable, "-c", textwrap.dedent(_PROGRAM)], input=data, timeout=120, env=secret)
    assert result.returncode == 0, result.stderr.decode()
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_program_gets_its_order_alone() -> None:
    """Input and environment are the order's; of the decryptor's environment there is where programs are, no more."""
    answers = ask(
        {"args": ["cat"], "input": "hello"},
        {"args": ["/usr/bin/env"], "env": {"A": "b"}},
        {"args": ["ls", "/proc/self/fd"]},
    )

    assert answers[0] == {"out": "hello"}
    names = {line.partition("=")[0] for line in answers[1]["out"].splitlines()}
    assert "A" in names
    assert names <= {"A", "PATH", "LANG", "TZ"}
    assert answers[2]["out"].split() == ["0", "1", "2", "3"]  # the last is the listing's own


@pytest.mark.skipif(not landlock.available(), reason="this kernel has no Landlock")
def test_programs_cannot_read_the_keys(tmp_path: Path) -> None:
    """What stands beside the key directory a program reads; what is in it, however reached, it does not."""
    keys = tmp_path / "state" / "keys"
    (keys / "deep").mkdir(parents=True)
    for path in (keys / "node.pem", keys / "deep" / "b.pem", tmp_path / "state" / "other"):
        path.write_text("content")
    (tmp_path / "link").symlink_to(keys)
    hidden = [str(tmp_path / "link")]
    wanted = (keys / "node.pem", keys / "deep" / "b.pem", tmp_path / "link" / "node.pem", tmp_path / "state" / "other")
    programs = [*(["cat", str(path)] for path in wanted), ["ls", str(keys)], ["sh", "-c", f"cd {keys} && cat node.pem"]]
    answers = ask(*({"args": program, "hidden": hidden} for program in programs))

    assert [answer.get("out") for answer in answers] == [None, None, None, "content", None, None]
    assert all("Permission denied" in answer["error"] for answer in answers if "out" not in answer)


def test_a_failing_program_shows_its_complaint_only() -> None:
    """Of a program that fails, standard error is told and standard output, which may be a key, is not."""
    (answer,) = ask({"args": ["sh", "-c", "echo KEY; echo sorry >&2; exit 3"]})

    assert answer == {"error": "FailedPrecondition: sh failed: sorry"}


def test_what_cannot_be_started_is_named() -> None:
    """A program that is not there is an error with its name, and the helper goes on."""
    first, second = ask({"args": ["/no/such/program"]}, {"args": ["cat"], "input": "still here"})

    assert "/no/such/program" in first["error"]
    assert second == {"out": "still here"}


def test_a_program_ends_in_time() -> None:
    """A program that takes too long is killed with everything it started."""
    mark = f"3{os.getpid()}.75"
    began = time.monotonic()
    (answer,) = ask({"args": ["sh", "-c", f"sleep {mark} & sleep {mark}"], "timeout": 0.3})

    assert "did not finish within 0.3 s" in answer["error"]
    assert time.monotonic() - began < 60
    eventually(lambda: command.run(["pgrep", "-f", f"sleep {mark}"], timeout=30).returncode == 1)


def test_a_helper_that_is_gone_is_said_to_be() -> None:
    """Without its helper the decryptor says so at once; it does not wait."""
    began = time.monotonic()
    (answer,) = ask({"end": True, "args": ["cat"], "timeout": 100.0})

    assert "helper is gone" in answer["error"] or "helper died" in answer["error"]
    assert time.monotonic() - began < 60


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    import shutil

    made = Keeper()
    made.prepare()
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.directory)


def test_a_decryptor_without_its_helper_ends(keeper: Keeper) -> None:
    """It ends to be started anew by whoever keeps it: there is no other way to a new helper."""
    assert keeper.process is not None
    pid = keeper.process.pid
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        os.kill(int(file.read().split()[0]), signal.SIGKILL)

    assert keeper.process.wait(30) == 1
    assert "the helper is gone" in keeper.log
    assert "Landlock" not in keeper.log
    keeper.process = None


def test_a_second_decryptor_is_refused(keeper: Keeper) -> None:
    """A decryptor where one serves already ends with a word, and the first serves on."""
    program = os.path.join(os.path.dirname(sys.executable), "decryptor")
    second = command.run([program, "--config", str(keeper.directory / "config.toml")], timeout=60)

    assert second.returncode == 1
    assert b"is in use by another process" in second.stderr
    with pytest.raises(BulkheadError, match="0 recipients"):
        keeper.encrypt(b"x")
