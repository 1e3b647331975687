"""Image verifiers decide as containerd's bindir plugin has them decide, and are asked when they must be."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bulkhead import command
from bulkhead.command import Result
from bulkhead.config.model import ImageVerifier
from bulkhead.errors import Cancelled, DeadlineExceeded, PermissionDenied, Unknown
from image_svc.kubelet_errors import SignatureValidationFailed
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor
from image_svc.verify.verdicts import Candidate, Verifier

DIGEST = "sha256:" + "a" * 64
IMAGE = Candidate("q.io/app:1", Descriptor(DIGEST, 123, "application/vnd.oci.image.index.v1+json"))
OTHER = Candidate("q.io/other:1", Descriptor("sha256:" + "b" * 64, 5, "x"))


class Programs:
    """A directory of verifiers that are not really run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.calls: list[tuple[list[str], dict[str, Any], float]] = []
        self.answers: dict[str, Result | Exception] = {}
        monkeypatch.setattr(command, "run", self.run)

    def add(self, name: str, status: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> None:
        """Put a verifier there."""
        self.directory.mkdir(exist_ok=True)
        (self.directory / name).write_bytes(os.urandom(8))
        self.answers[name] = Result((), status, stdout, stderr)

    def run(self, args: Sequence[str], *, timeout: float, input: bytes, limit: int) -> Result:
        """Note the call and answer."""
        self.calls.append((list(args), json.loads(input), timeout))
        answer = self.answers[Path(args[0]).name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def asked(self) -> list[str]:
        """Who was asked."""
        return [Path(args[0]).name for args, _, _ in self.calls]

    def verifier(self, **options: Any) -> Verifier:
        """Return a verifier over the directory."""
        return Verifier(ImageVerifier(bin_dir=str(self.directory), **options))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Set up a directory that is not there yet."""
    return Programs(tmp_path / "bin", monkeypatch)


def patience() -> Patience:
    """Return time enough."""
    return Patience(30.0, "test")


def test_call(programs: Programs) -> None:
    """A verifier gets name, digest and the descriptor's type as arguments and the descriptor on standard input."""
    programs.add("one", stdout=b" signed \n")

    programs.verifier().check(IMAGE, patience())

    ((args, descriptor, timeout),) = programs.calls
    kind = "application/vnd.oci.descriptor.v1+json"
    program = str(programs.directory / "one")
    assert args == [program, "-name", "q.io/app:1", "-digest", DIGEST, "-stdin-media-type", kind]
    assert descriptor == {"mediaType": IMAGE.target.media_type, "digest": DIGEST, "size": 123}
    assert timeout == 10.0


def test_nobody_to_ask(programs: Programs) -> None:
    """Without the directory, and with an empty one, every image passes."""
    programs.verifier().check(IMAGE, patience())
    assert programs.verifier().idle()
    programs.directory.mkdir()
    programs.verifier().check_again([IMAGE], patience())
    assert programs.verifier().idle()
    Verifier(ImageVerifier(bin_dir="")).check(IMAGE, patience())
    assert programs.calls == []


def test_all_must_agree(programs: Programs) -> None:
    """The first refusal ends it, with the verifier's words, as an error that the kubelet knows."""
    programs.add("a", stdout=b"fine")
    programs.add("b", 3, stdout=b"not\nsigned")
    programs.add("c")

    with pytest.raises(SignatureValidationFailed) as caught:
        programs.verifier().check(IMAGE, patience())
    assert programs.asked == ["a", "b"]
    text = f"verifier b rejected image q.io/app:1 with digest {DIGEST} (exit code 3): not signed"
    assert str(caught.value) == f"SignatureValidationFailed: {text}"
    assert caught.value.code == Unknown.code
    assert isinstance(caught.value, PermissionDenied)


@pytest.mark.parametrize(("most", "asked"), [(10, "abc"), (2, "ab"), (0, ""), (-1, "abc")])
def test_max_verifiers(programs: Programs, most: int, asked: str, caplog: pytest.LogCaptureFixture) -> None:
    """The first so many by name are asked, all with a number below 0; that others are not is told."""
    for name in "cab":
        programs.add(name)

    programs.verifier(max_verifiers=most).check(IMAGE, patience())

    assert programs.asked == list(asked)
    assert ("of which the first" in caplog.text) == (len(asked) < 3)


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (DeadlineExceeded("/x/a did not finish within 10 s and was killed"), "did not finish within 10 s"),
        (OSError(8, "Exec format error"), "Exec format error"),
        (Result((), -9, b"", b""), "killed by signal 9"),
    ],
)
def test_what_cannot_say_does_not_say_yes(programs: Programs, failure: Result | Exception, why: str) -> None:
    """A verifier that does not end, cannot be run or is killed lets nothing pass."""
    programs.add("a")
    programs.answers["a"] = failure

    with pytest.raises(SignatureValidationFailed, match=f"could not be verified: a.*{why}"):
        programs.verifier().check(IMAGE, patience())


def test_unreadable_directory(programs: Programs, tmp_path: Path) -> None:
    """A directory that is there and cannot be read lets nothing pass."""
    (tmp_path / "bin").symlink_to(tmp_path / "bin")

    with pytest.raises(SignatureValidationFailed, match=r"image verifiers of .*bin"):
        programs.verifier().check(IMAGE, patience())
    (tmp_path / "bin").unlink()
    (tmp_path / "bin").write_text("")
    with pytest.raises(SignatureValidationFailed, match="Not a directory"):
        programs.verifier().check_again([IMAGE], patience())


def test_link_that_leads_nowhere(programs: Programs) -> None:
    """A broken link among the verifiers is asked like the others, and so lets nothing pass."""
    programs.directory.mkdir()
    (programs.directory / "gone").symlink_to("/nonexistent")
    programs.answers["gone"] = OSError(2, "No such file or directory")

    with pytest.raises(SignatureValidationFailed, match="gone"):
        programs.verifier().check(IMAGE, patience())


def test_words_are_bounded(programs: Programs, caplog: pytest.LogCaptureFixture) -> None:
    """What a verifier says is cut, without control characters; its standard error is for the debug log."""
    caplog.set_level(logging.DEBUG)
    programs.add("a", 1, stdout=b"\x1b[31mred" + b"x" * 100_000, stderr=b"one\n" + b"y" * 100_000)

    with pytest.raises(SignatureValidationFailed) as caught:
        programs.verifier().check(IMAGE, patience())
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()
    lines = [record.message for record in caplog.records if "image verifier a: " in record.message]
    assert lines[0].endswith(": one")
    assert sum(map(len, lines)) < 40_000


def test_every_pull_asks(programs: Programs) -> None:
    """What passed before is verified again at the next pull."""
    programs.add("a")
    verifier = programs.verifier()
    for _ in range(3):
        verifier.check(IMAGE, patience())

    assert len(programs.calls) == 3


def test_remembered_for_containers(programs: Programs) -> None:
    """A container of an image that passed is made without asking, of another one after asking once."""
    programs.add("a")
    verifier = programs.verifier()
    verifier.check(IMAGE, patience())
    verifier.check_again([OTHER, IMAGE], patience())
    assert len(programs.calls) == 1

    verifier.check_again([OTHER], patience())
    verifier.check_again([OTHER], patience())
    assert len(programs.calls) == 2


def test_changed_verifiers_ask_again(programs: Programs) -> None:
    """A verifier that is added, replaced or removed makes every verdict void."""
    programs.add("a")
    verifier = programs.verifier()
    verifier.check(IMAGE, patience())
    programs.add("b", 1)
    with pytest.raises(SignatureValidationFailed):
        verifier.check_again([IMAGE], patience())
    programs.add("b", 0)
    verifier.check_again([IMAGE], patience())
    verifier.check_again([IMAGE], patience())
    (programs.directory / "b").unlink()
    verifier.check_again([IMAGE], patience())

    assert programs.asked == ["a", "a", "b", "a", "b", "a"]


def test_one_name_that_passes_is_enough(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container names an image by its id: one of its names must pass, and a refusal is asked anew each time."""
    programs.add("a", 1)
    verifier = programs.verifier()
    for _ in range(2):
        with pytest.raises(SignatureValidationFailed, match=r"rejected image q\.io/app:1"):
            verifier.check_again([IMAGE, OTHER], patience())
    assert len(programs.calls) == 4
    with pytest.raises(SignatureValidationFailed, match="no name"):
        verifier.check_again([], patience())

    def choosy(args: Sequence[str], **_: Any) -> Result:
        return Result((), 0 if "q.io/other:1" in args else 1, b"", b"")

    monkeypatch.setattr(command, "run", choosy)
    verifier.check_again([IMAGE, OTHER], patience())


def test_called_off(programs: Programs) -> None:
    """A pull that nobody waits for any more is not a refusal."""
    programs.add("a")
    over = patience()
    over.cancel()

    with pytest.raises(Cancelled):
        programs.verifier().check(IMAGE, over)
