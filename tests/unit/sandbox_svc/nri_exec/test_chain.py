"""Exec plugins one after the other, with a stand-in for the running of programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from bulkhead import command
from bulkhead.config.model import Bulkhead
from bulkhead.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted
from sandbox_svc.nri_exec import Chain, Subject
from sandbox_svc.nri_exec.conf import Plugin

SUBJECT = Subject("c", "p", 7, {"linux": {"cgroupsPath": "/pods/c"}})


class Programs:
    """Answers in the place of plugins and keeps what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(command, "run", self.run)

    def run(self, args: list[str], *, timeout: float, input: bytes, **_: Any) -> command.Result:
        name = Path(args[0]).name
        assert args == [f"/plugins/{name}", "invoke"]
        assert timeout == 10.0
        self.asked.append((name, json.loads(input)))
        answer = self.answers.get(name, {})
        if isinstance(answer, Exception):
            raise answer
        status, said, text = answer if isinstance(answer, tuple) else (0, b"", json.dumps(answer).encode())
        return command.Result(tuple(args), status, text, said)


CHAIN = Chain(Bulkhead(nri_exec_bin_dir="/plugins"))
BOTH = [Plugin("one"), Plugin("two")]


def no_move(path: str) -> int:
    raise AssertionError(path)


def test_each_hears_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are handed on in their order."""
    programs = Programs(monkeypatch, one={"metadata": {"set": "0"}}, two={})
    CHAIN.create(BOTH, SUBJECT, no_move)
    assert [name for name, _ in programs.asked] == ["one", "two"]
    assert programs.asked[1][1]["results"] == [
        {"plugin": "one", "version": "0.1", "error": "", "metadata": {"set": "0"}}
    ]


def test_a_move_is_what_later_plugins_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """The container is made anew once, for an answer that differs, and has another process then."""
    programs = Programs(monkeypatch, one={"cgroupsPath": "/ls/c"}, two={"cgroupsPath": "/ls/c"})
    moves: list[str] = []
    CHAIN.create(BOTH, SUBJECT, lambda path: moves.append(path) or 8)  # type: ignore[func-returns-value]
    assert moves == ["/ls/c"]
    heard = programs.asked[1][1]
    assert (heard["pid"], heard["spec"]["cgroupsPath"]) == (8, "/ls/c")


@pytest.mark.parametrize("path", ["/", "/../c", "x/../../c"])
def test_no_group_outside_the_hierarchy(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A plugin names a group below the root, or fails the start."""
    Programs(monkeypatch, one={"cgroupsPath": path})
    with pytest.raises(FailedPrecondition, match=r"plugin one \(create\): cgroupsPath"):
        CHAIN.create(BOTH, SUBJECT, no_move)


@pytest.mark.parametrize(
    ("answer", "kind", "complaint"),
    [
        ({"error": "no"}, FailedPrecondition, r"plugin one \(create\): no$"),
        ((2, b"boom\n", b"{}"), FailedPrecondition, r"it failed \(exit status 2, stderr: boom\)"),
        ((2, b"boom\n", b""), FailedPrecondition, r"it wrote no result \(exit status 2, stderr: boom\)"),
        (DeadlineExceeded("late"), DeadlineExceeded, r"plugin one \(create\): late"),
        (ResourceExhausted("much"), FailedPrecondition, r"plugin one \(create\): much"),
    ],
)
def test_a_failure_names_the_plugin(
    monkeypatch: pytest.MonkeyPatch, answer: Any, kind: type[Exception], complaint: str
) -> None:
    """Nobody is asked after the one that failed."""
    programs = Programs(monkeypatch, one=answer)
    with pytest.raises(kind, match=complaint):
        CHAIN.create(BOTH, SUBJECT, no_move)
    assert [name for name, _ in programs.asked] == ["one"]


def test_the_end_is_told_to_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that fails keeps neither the others nor the end."""
    programs = Programs(monkeypatch, one=DeadlineExceeded("late"))
    (tmp_path / "conf.json").write_text('{"plugins": [{"type": "one"}, {"type": "two"}]}')
    chain = Chain(
        Bulkhead(nri_exec_bin_dir="/plugins", nri_exec_conf_path=str(tmp_path / "conf.json"), nri_exec_conf_dir="")
    )
    chain.delete(SUBJECT)
    assert [(name, told["state"]) for name, told in programs.asked] == [("one", "delete"), ("two", "delete")]
    (tmp_path / "conf.json").write_text("{")
    chain.delete(SUBJECT)
    assert len(programs.asked) == 2
