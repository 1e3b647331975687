"""Progress, sizes, ages and tables as people see them."""

import argparse
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bulkhead.cli.images import exits, text
from bulkhead.cli.images.bars import Bars
from bulkhead.cli.images.login import credentials, registry_of
from bulkhead.cli.images.progress import Lines
from bulkhead.errors import BulkheadError, DataLoss, Internal, NotFound, Unavailable
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (999, "999B"), (1000, "1.00kB"), (9994, "9.99kB"), (9996, "10.0kB"), (123_456, "123kB"),
     (999_600, "1.00MB"), (2_789_669, "2.79MB"), (5 * 10**12, "5.00TB"), (10**18, "1000PB")],
)  # fmt: skip
def test_sizes(count: int, shown: str) -> None:
    """Three significant digits, never 1000 of a unit that has a larger one."""
    assert text.size(count) == shown


@given(st.integers(0, 10**18))
def test_sizes_are_close(count: int) -> None:
    """What is shown is within half a percent."""
    shown = text.size(count)
    number = float(shown.rstrip("BkMGTP"))
    factor = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(shown.lstrip("0123456789."))
    assert abs(number * factor - count) <= count * 0.0051 + 0.5


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1, "just now"), (30, "30 seconds ago"), (60, "1 minute ago"), (7200, "2 hours ago"), (86_400 * 20, "2 weeks ago"),
     (86_400 * 800, "2 years ago")],
)  # fmt: skip
def test_ages(seconds: int, shown: str) -> None:
    """The largest unit that fits, whole."""
    assert text.age(10**18 - seconds * 10**9, now=1e9) == shown


def test_names_cannot_steer_the_terminal() -> None:
    """Control characters that an image's maker wrote are replaced."""
    assert "\x1b" not in text.table(["A"], [["\x1b[2Jgone\n"]])


@pytest.mark.parametrize(
    ("image", "registry"),
    [("busybox", "docker.io"), ("library/busybox:1", "docker.io"), ("localhost/x", "localhost"),
     ("quay.io/a/b", "quay.io"), ("reg:5000/a", "reg:5000"), ("quay.io", "docker.io")],
)  # fmt: skip
def test_registry_of_a_name(image: str, registry: str) -> None:
    """The first component counts when it looks like a host."""
    assert registry_of(image) == registry


@pytest.mark.parametrize(
    ("image", "user"),
    [
        ("quay.io/one/app:1", "one"),
        ("quay.io/one/app/deep@sha256:" + "0" * 64, "app"),
        ("quay.io/one/application", "one"),
        ("quay.io/two/app", "quay"),
        ("quay.io:443/one/app", "port"),
        ("busybox", "busybox"),
        ("docker.io/library/bash:5", "hub"),
        ("robot/app", "hub"),
    ],
)
def test_an_entry_for_a_part_of_a_registry(tmp_path: Path, image: str, user: str) -> None:
    """Of a file as Podman writes it the entry that says most of the image counts, and no other namespace's."""
    entries = {
        "quay.io/one": "one",
        "quay.io/three": "three",
        "quay.io": "quay",
        "quay.io/one/app/deep": "app",
        "quay.io:443/one": "port",
        "https://index.docker.io/v1/": "hub",
        "docker.io/library/busybox": "busybox",
        "https://[": "broken",
    }
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {key: {"username": name, "password": "x"} for key, name in entries.items()}}))
    assert credentials(_options(file), image) == AuthConfig(username=user, password="x")


def _options(file: Path) -> argparse.Namespace:
    return argparse.Namespace(user=None, password_stdin=False, authfile=str(file))


@pytest.mark.parametrize("auths", [{"q.io/other": {"auth": "eDp5"}}, {"q.io": {}}, {}, [], None])
def test_a_file_without_an_entry(tmp_path: Path, auths: object) -> None:
    """Another namespace's credentials are not sent, nor none where a helper keeps them; that is said."""
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": auths, "credsStore": "desktop"}))
    with pytest.raises(NotFound, match=r"no credentials for q\.io in auths; credential helpers, .* are not asked"):
        credentials(_options(file), "q.io/app:1")


@pytest.mark.parametrize(
    ("error", "status"),
    [(NotFound("x"), 3), (Unavailable("x"), 5), (DataLoss("x"), 8), (Internal("x"), 1),
     (BulkheadError("SignatureValidationFailed: x"), 4), (BulkheadError("RegistryUnavailable: x"), 5)],
)  # fmt: skip
def test_exit_statuses(error: BulkheadError, status: int) -> None:
    """An error's kind decides, the CRI's own names before it."""
    assert exits.status(error) == status


def transfer(*states: "pb.Part.State", done: int = 0) -> pb.Transfer:
    """Return a transfer whose layers of 1 MB are in those states."""
    parts = [
        pb.Part(digest=f"sha256:{n:064x}", size=10**6, done=10**6 if state in (3, 4) else done, state=state)
        for n, state in enumerate(states)
    ]
    return pb.Transfer(id="1", image="x.io/a:1", stage=pb.Transfer.MOVING, parts=parts)


def test_lines() -> None:
    """Elsewhere than on a terminal a layer's end is a line, said once, and the whole is summed up now and then."""
    out = io.StringIO()
    lines = Lines("pulling", out, period=0)
    lines.show(transfer(pb.Part.MOVING, pb.Part.PRESENT, done=1000))
    lines.show(transfer(pb.Part.MOVING, pb.Part.PRESENT, done=500_000))
    lines.show(transfer(pb.Part.DONE, pb.Part.PRESENT))
    lines.close()
    shown = out.getvalue().splitlines()
    assert shown[0] == "000000000000: exists (1.00MB)" or "exists" in shown[0]
    assert any(line.startswith("x.io/a:1: pulling 1.50MB of 2.00MB, ") and "left" in line for line in shown)
    assert sum(line.endswith("done (1.00MB)") for line in shown) == 1


def test_bars() -> None:
    """On a terminal every layer has a bar with amount, rate and time left, and so has the whole."""
    out = io.StringIO()
    bars = Bars("pulling", Console(file=out, force_terminal=True, width=140))
    bars.show(transfer(pb.Part.MOVING, pb.Part.PRESENT, done=1000))
    bars.show(transfer(pb.Part.MOVING, pb.Part.PRESENT, done=500_000))
    bars.bytes(10, 20)
    bars.close()
    last = out.getvalue()
    assert "pulling" in last
    assert "exists" in last
    assert "1.5/2.0 MB" in last


@pytest.mark.parametrize("width", [20, 40, 52, 64, 80, 140])
def test_bars_fit(width: int) -> None:
    """No line is longer than the terminal is wide, whatever the name, and none is broken."""
    out = io.StringIO()
    bars = Bars("pulling", Console(file=out, force_terminal=True, width=width, height=30))
    moving = transfer(pb.Part.MOVING, pb.Part.UNPACKING, pb.Part.PRESENT, done=1000)
    moving.image = f"registry.example.com:5000/{'team/' * 10}app:1.2.3"
    bars.show(moving)
    bars.close()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip("\r") for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    last = [line for line in lines if line][-4:]
    assert [("exists" in line, "pulling" in line) for line in last[2:]] == [(True, False), (False, True)]
    if width >= 40:
        assert ":1.2.3" in last[3]


def test_bars_of_more_layers_than_lines() -> None:
    """With too few lines for all of them those at rest are hidden first, the sum never; at the end all are shown."""
    out = io.StringIO()
    bars = Bars("pulling", Console(file=out, force_terminal=True, width=100, height=8))
    states = [pb.Part.DONE] * 10 + [pb.Part.MOVING] * 3 + [pb.Part.PRESENT] * 10
    bars.show(transfer(*states, done=1000))
    shown = [task for task in bars._progress.tasks if task.visible]
    assert [task.fields["state"] for task in shown] == [
        "pulling",
        "pulling",
        "pulling",
        "exists",
        "exists",
        "exists",
        "pulling",
    ]
    assert shown[-1].description == "x.io/a:1"
    bars.close()
    assert sum(task.visible for task in bars._progress.tasks) == 24


def test_bars_of_several_images() -> None:
    """Each image has its own sum, and a layer that two transfers of it have counts once."""
    bars = Bars("importing", Console(file=io.StringIO(), force_terminal=True, width=100))
    first, again, other = transfer(pb.Part.DONE), transfer(pb.Part.PRESENT), transfer(pb.Part.DONE, pb.Part.DONE)
    again.id, other.id, other.image = "2", "3", "x.io/b:1"
    for each in (first, again, other):
        bars.show(each)
    sums = {task.description: task.total for task in bars._progress.tasks if task.description.startswith("x.io")}
    assert sums == {"x.io/a:1": 10**6, "x.io/b:1": 2 * 10**6}
    bars.close()
