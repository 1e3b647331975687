"""`bulkhead images`: what it prints, what it exits with, and what it leaves where."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.cli.__main__ import parser
from bulkhead.cli.images import exits, layout
from bulkhead.errors import DataLoss, FailedPrecondition, Unavailable
from bulkhead.proto import images_pb2 as pb
from support import archives
from support.fake_registry import FakeRegistry, Handler
from support.image_station import Station
from support.images import MEDIA, Image, Layer, digest

VERBS = (
    "ls",
    "pull",
    "push",
    "tag",
    "rm",
    "inspect",
    "layerinfo",
    "import",
    "export",
    "encrypt",
    "decrypt",
    "evict",
    "usage",
    "prune",
    "explain",
    "watch",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb shows examples of itself and the exit statuses, in lines that fit a terminal of 120 columns."""
    with pytest.raises(SystemExit) as left:
        parser("images").parse_args(["images", verb, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0
    assert f"bulkhead images {verb} " in text.partition("examples:")[2]
    assert exits.TEXT in text
    assert max(map(len, text.partition("examples:")[2].splitlines())) <= 120


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits(verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prose is filled to the terminal's width."""
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        parser("images").parse_args(["images", verb, "--help"])
    shown = capsys.readouterr().out.partition("\n\n")[2]
    prose = shown.partition("\npositional arguments:")[0].partition("\noptions:")[0]
    assert prose.splitlines()
    assert max(map(len, prose.splitlines())) <= 60


def test_other_commands_do_not_pay() -> None:
    """gRPC and rich are imported for `images` alone."""
    script = (
        "import sys; from bulkhead.cli.__main__ import parser; parser('status');"
        "print([m for m in ('grpc', 'rich') if m in sys.modules])"
    )
    assert subprocess_output(script) == "[]"


def subprocess_output(script: str) -> str:
    """Return what a Python program prints."""
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


def test_ls(node: Station, here: str) -> None:
    """A table for people, ids for scripts, JSON with numbers for programs."""
    node.images("tag", "app:1", "x.io/zoo:7")
    ran = node.images("ls")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "PULLED", "SIZE", "PLATFORM", "STATE"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["docker.io/library/app", "1", here[7:19]],
        ["x.io/zoo", "7", here[7:19]],
    ]
    assert node.images("ls", "--quiet").out == f"{here}\n"
    assert here in node.images("ls", "--no-trunc").out
    (shown,) = json.loads(node.images("ls", "--json", "x.io/*", "--filter", "reference=x.io/*").out)["images"]
    assert isinstance(shown["size"], int)
    assert shown["used_by"] == []
    assert node.images("ls", "nothing*", "--quiet").out == ""
    wrong = node.images("ls", "--filter", "x=y")
    assert (wrong.status, wrong.out) == (exits.USAGE, "")


def test_ls_of_an_image_that_came_in_two_forms(node: Station, image: Image) -> None:
    """Each name shows the platforms of what it stands for: an index that is here whole, or one manifest of it."""
    other = Image([Layer().file("a", "for arm").tar()], architecture="arm64")
    index = archives.index_of([other, image])
    described = archives.entry(index, MEDIA["oci"]["index"], **{archives.FULL_NAME: "x.io/multi:1"})
    blobs = {archives.blob_name(digest(index)): index, **archives.image_blobs(image), **archives.image_blobs(other)}
    node.send(archives.tar(archives.layout([described], blobs)), pb.ImportOptions(platforms=pb.Platforms(all=True)))
    for name in ("x.io/a:1", "x.io/z:1"):
        node.send(archives.tar(archives.oci(image, name)))
    rows = [line.split() for line in node.images("ls").out.splitlines()[1:]]
    assert {row[0]: row[-1] for row in rows} == {
        "x.io/a": "linux/amd64",
        "x.io/multi": "linux/arm64,linux/amd64",
        "x.io/z": "linux/amd64",
    }


def test_ls_dangling_and_digests(node: Station, here: str) -> None:
    """An image whose tag moved shows <none>, and is what --dangling lists."""
    other = Image([Layer().file("c", "other").tar()])
    node.send(archives.tar(archives.oci(other)))
    assert node.images("ls", "--dangling", "-q").out == f"{here}\n"
    rows = [line.split() for line in node.images("ls", "--digests", "--no-trunc", "--sort", "pulled").out.splitlines()]
    assert [row[1] for row in rows[1:]] == ["1", "<none>"]
    assert rows[1][2] == digest(other.manifest())


def test_tag_and_rm(node: Station, here: str) -> None:
    """Several at once; what fails sets the status and does not keep the others from their end."""
    assert node.images("tag", "app:1", "x.io/a:1", "x.io/b").out == "x.io/a:1\nx.io/b:latest\n"
    ran = node.images("rm", "x.io/a:1", "nope:1", "x.io/b")
    assert (ran.status, ran.out) == (exits.MISSING, "untagged: x.io/a:1\nuntagged: x.io/b:latest\n")
    assert "'nope:1' is not here" in ran.err
    assert node.images("rm", "--ignore-missing", "nope:1").status == 0
    assert f"deleted: {here}" in node.images("rm", here).out
    assert node.images("rm", "Bad Name").status == exits.USAGE


def test_inspect_and_layerinfo(node: Station, here: str, image: Image) -> None:
    """JSON with configuration and manifest; the table that ctr-enc users know."""
    (shown,) = json.loads(node.images("inspect", "app:1").out)
    assert shown["config"]["config"]["Cmd"] == ["sh"]
    assert shown["manifest"] == json.loads(image.manifest())
    assert (shown["id"], shown["index"]) == (here, None)
    head, *rows = node.images("layerinfo", "app:1", "--platform", "linux/amd64").out.splitlines()
    assert head.split() == ["#", "DIGEST", "PLATFORM", "SIZE", "ENCRYPTION", "RECIPIENTS"]
    _, layers = image.blobs()
    assert [row.split() for row in rows] == [
        [str(n), digest(layer), "linux/amd64", str(len(layer))] for n, layer in enumerate(layers)
    ]
    assert node.images("layerinfo", "app:1", "--platform", "linux/s390x").status == exits.MISSING
    some = node.images("inspect", "nope:1", "app:1", "x.io/nope")
    assert (some.status, some.err.count("is not here")) == (exits.MISSING, 2)
    assert [each["id"] for each in json.loads(some.out)] == [here]


def test_pull(node: Station, registry: FakeRegistry, image: Image) -> None:
    """Results go to standard output, progress to standard error; quiet prints the id alone."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"
    ran = node.images("pull", name)
    assert ran.out == f"{name}: {digest(image.manifest())}\n"
    assert ran.err.count(": done (") == 2
    assert node.images("pull", "-q", name).out == f"{digest(image.blobs()[0])}\n"
    events = [json.loads(line) for line in node.images("pull", "--json", name).out.splitlines()]
    assert events[-1]["result"]["names"] == [name]
    assert {part["state"] for part in events[-2]["progress"]["parts"]} == {"PRESENT"}


def test_pull_of_several(node: Station, registry: FakeRegistry, image: Image) -> None:
    """Every one is tried; the first failure is the status."""
    registry.push("app", "1", image)
    ran = node.images("pull", f"{registry.address}/no:1", f"{registry.address}/app:1")
    assert ran.status == exits.MISSING
    assert "app:1" in ran.out


def test_credentials(
    node: Station, registry: FakeRegistry, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password comes from standard input, the option, or a file as docker login writes it, and is never printed."""
    registry.push("app", "1", image)
    name = f"{registry.address}/app:1"

    def guard(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == "Basic cm9ib3Q6c2VjcmV0LXdvcmQ=":
            return False
        return handler.reply(401, WWW_Authenticate='Basic realm="test"')

    registry.on("/v2/", guard)
    assert node.images("pull", name).status == exits.REFUSED
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret-word\n"))
    assert node.images("pull", "--user", "robot", "--password-stdin", name).status == 0
    assert node.images("pull", "--user", "robot:secret-word", name).status == 0
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {registry.address: {"auth": "cm9ib3Q6c2VjcmV0LXdvcmQ="}}}))
    assert node.images("pull", "--authfile", str(file), name).status == 0
    wrong = node.images("pull", "--authfile", str(file), "other.io/app")
    assert wrong.status == exits.MISSING
    assert "no credentials for other.io" in wrong.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert node.images("pull", "--password-stdin", name).status == exits.USAGE
    assert node.images("pull", "--user", "robot", "--password-stdin", name).status == exits.USAGE
    assert node.images("pull", "--user", "robot", name).status == exits.USAGE


def test_export_and_import(node: Station, here: str, tmp_path: Path) -> None:
    """A tar, a directory and standard input hold the same image; what fails leaves no file."""
    tar, directory = tmp_path / "out.tar", tmp_path / "layout"
    assert node.images("export", str(tar), "app:1").status == 0
    assert node.images("export", "--directory", str(directory), "app:1").status == 0
    files = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert files == archives.untar(tar.read_bytes())
    assert node.images("export", "--directory", str(directory), "app:1").status == exits.CONFLICT

    before = sorted(os.listdir(tmp_path))
    assert node.images("export", str(tmp_path / "none.tar"), "nope:1").status == exits.MISSING
    assert node.images("export", str(tmp_path / "no" / "dir.tar"), "app:1").status == exits.CONFLICT
    assert sorted(os.listdir(tmp_path)) == before

    node.images("rm", "app:1")
    assert node.images("import", str(tar)).out == "docker.io/library/app:1\n"
    assert node.images("import", str(directory), "--name", "x.io/a:1", "-q").out == f"{here}\n"
    assert node.images("import", str(tmp_path / "none.tar")).status == exits.MISSING
    assert node.images("import", str(tmp_path)).status == exits.USAGE
    (directory / "blobs" / "sha256" / here[7:]).write_bytes(b"{}")
    assert node.images("import", str(directory)).status == exits.DAMAGED


def test_standard_streams(node: Station, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard output of an export and standard input of an import."""
    node.images("export", str(tmp_path / "out.tar"), "app:1")
    data = (tmp_path / "out.tar").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert node.images("import", "-", "--name", "x.io/in:1").out == "x.io/in:1\n"


def test_as_docker_has_it(node: Station, here: str, tmp_path: Path) -> None:
    """save -o and load -i, rm -f; a file without images, or two archives, are wrong usage and write nothing."""
    tar = tmp_path / "out.tar"
    assert node.images("save", "-o", str(tar), "app:1").status == 0
    assert node.images("load", "-i", str(tar), "-q").out == f"{here}\n"
    assert node.images("rm", "-f", "app:1").status == 0
    for arguments in (
        ("load",),
        ("load", "-i", str(tar), str(tar)),
        ("save", "app:1"),
        ("save", "-", "--json", "app:1"),
    ):
        assert node.images(*arguments).status == exits.USAGE
    assert not Path("app:1").exists()


def test_options_stand_anywhere(node: Station, here: str, tmp_path: Path) -> None:
    """Before, between and behind the arguments; what is no option and what is missing is wrong usage all the same."""
    tar = str(tmp_path / "out.tar")
    for arguments in (
        ("export", tar, "--platform", "linux/amd64", "app:1", "--quiet"),
        ("save", "app:1", "-o", tar),
        ("tag", "app:1", "--keep-existing", "x.io/a:1"),
        ("inspect", "app:1", "--platform", "linux/amd64", "x.io/a:1"),
        ("ls", "--digests", "app*", "-q"),
    ):
        assert node.images(*arguments).status == 0, arguments
    for wrong in (("export", tar, "--nope", "app:1"), ("tag", "app:1", "--json"), ("usage", "more"), ("rm",)):
        ran = node.images(*wrong)
        assert (ran.status, ran.err.startswith("usage: ")) == (exits.USAGE, True), wrong


def test_export_tells_programs(node: Station, here: str, tmp_path: Path) -> None:
    """With --json one object says what was written."""
    tar = tmp_path / "out.tar"
    told = json.loads(node.images("export", "--json", str(tar), "app:1").out)
    assert told == {"file": str(tar), "bytes": tar.stat().st_size, "images": ["app:1"]}


@pytest.mark.parametrize("verb", [("ls", "--json"), ("inspect", "app:1"), ("usage",)])
def test_output_that_nobody_takes(node: Station, here: str, verb: tuple[str, ...]) -> None:
    """A reader that goes away, or a full disk behind standard output, ends a verb with a status and no traceback."""
    command = [sys.executable, "-m", "bulkhead.cli", "images", verb[0], "--socket", str(node.socket), *verb[1:]]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone, open("/dev/full", "wb") as full:
        left = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False, timeout=30)
        assert (left.returncode, left.stderr) == (exits.PIPE, b"")
        left = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=30)
        assert left.returncode == exits.FULL
        assert left.stderr == f"bulkhead images {verb[0]}: standard output: No space left on device\n".encode()


@pytest.mark.parametrize(
    ("number", "verb", "status", "said"),
    [
        (0, ("prune",), exits.USAGE, "no terminal to ask on"),
        (0, ("import", "-"), exits.DAMAGED, "archive is empty"),
        (1, ("ls",), exits.FAILED, "standard output: Bad file descriptor"),
        (1, ("export", "-", "app:1"), exits.CONFLICT, "standard output: Bad file descriptor"),
        (2, ("ls",), 0, ""),
        (2, ("rm", "nope"), exits.MISSING, ""),
    ],
)
def test_streams_that_are_closed(
    node: Station, here: str, number: int, verb: tuple[str, ...], status: int, said: str
) -> None:
    """A standard stream that the caller closed is told where it is needed, and nothing else takes its place."""
    command = [sys.executable, "-m", "bulkhead.cli", "images", verb[0], "--socket", str(node.socket), *verb[1:]]
    shell = ["sh", "-c", f'exec "$@" {number}{"<" if number == 0 else ">"}&-', "sh", *command]
    ran = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    assert (ran.returncode, "Traceback" in ran.stderr) == (status, False), ran.stderr
    assert said in ran.stderr


def test_an_export_that_is_told_to_end(node: Station, here: str, tmp_path: Path) -> None:
    """SIGTERM in the middle leaves no part of a file."""
    tar = tmp_path / "out.tar"
    script = (
        "import os, signal, sys\n"
        "from bulkhead.cli.images import exporting\n"
        "from bulkhead.cli.__main__ import main\n"
        "before = exporting._pieces\n"
        "def pieces(answers, shown):\n"
        "    for piece in before(answers, shown):\n"
        "        yield piece\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "exporting._pieces = pieces\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "images", "export", "--socket", str(node.socket), str(tar), "app:1"]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert not tar.exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_usage_and_prune(node: Station, here: str) -> None:
    """Tables with sums; prune says what it would do, does it, and finds nothing more."""
    text = node.images("usage").out
    assert "docker.io/library/app:1" in text
    assert "reclaimable" in text
    assert json.loads(node.images("usage", "--json").out)["layers"]["count"] == 2
    assert node.images("prune", "--force").out == "nothing to remove\n"
    assert "would remove: docker.io/library/app:1" in node.images("prune", "--all", "--dry-run").out
    assert node.images("prune", "--all", "--force", "-q").out == f"{here}\n"
    assert node.images("ls", "-q").out == ""


def test_prune_asks(node: Station, here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows what would go and takes yes for an answer; anything else, or nobody to ask, leaves everything here."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    alone = node.images("prune", "--all")
    assert (alone.status, alone.out) == (exits.USAGE, "")
    assert "--force" in alone.err
    for answer in ("", "\n", "n\n", "yess\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        ran = node.images("prune", "--all")
        assert (ran.status, ran.out) == (exits.FAILED, "")
        assert "would remove: docker.io/library/app:1" in ran.err
        assert ran.err.endswith("remove them? [y/N] nothing was removed\n")
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert node.images("prune").out == "nothing to remove\n"
    assert node.images("ls", "-q").out == f"{here}\n"
    assert node.images("prune", "--all", "-q").out == f"{here}\n"
    assert node.images("ls", "-q").out == ""


@pytest.mark.parametrize("flag", ["-f", "-y", "--yes"])
def test_prune_unasked(node: Station, here: str, flag: str) -> None:
    """The flags of docker, and of other tools, for not asking."""
    assert node.images("prune", "--all", "-q", flag).out == f"{here}\n"


def test_explain(node: Station, registry: FakeRegistry, image: Image) -> None:
    """The hosts in order and what they answer; for a name that does not resolve the status that its pull has."""
    registry.push("app", "1", image)
    ran = node.images("explain", f"{registry.address}/app:1")
    assert ran.status == 0
    assert f"resolves to {digest(image.manifest())}" in ran.out
    gone = node.images("explain", f"{registry.address}/no:1")
    assert gone.status == exits.MISSING
    assert "does not resolve" in gone.out
    registry.on("/private/", lambda handler: handler.reply(403))
    assert node.images("explain", f"{registry.address}/private:1").status == exits.REFUSED
    assert node.images("explain", "127.0.0.1:1/app:1").status == exits.UNAVAILABLE
    assert json.loads(node.images("explain", "--offline", "--json", "busybox").out)["hosts"]


def test_an_unknown_option(node: Station) -> None:
    """It is refused beside the usage of the verb."""
    ran = node.images("explain", "--loud", "busybox")
    assert ran.status == exits.USAGE
    assert "images explain [-h]" in ran.err.splitlines()[0]
    assert ran.err.endswith("error: unrecognized arguments: --loud\n")


def test_watch_once(node: Station) -> None:
    """With nothing under way there is nothing to show, and said so; an interval that is none is wrong usage."""
    ran = node.images("watch", "--once")
    assert (ran.status, ran.out, ran.err) == (0, "", "no pull is under way\n")
    for interval in ("0", "nan", "1e9", "-1"):
        assert node.images("watch", f"--interval={interval}").status == exits.USAGE
    assert json.loads(node.images("watch", "--once", "--json").out) == {"pulls": []}


def test_no_service(node: Station, tmp_path: Path) -> None:
    """A socket that is not there, or is none, is told with its path."""
    node.socket = tmp_path / "none.sock"
    ran = node.images("ls")
    assert ran.status == exits.UNAVAILABLE
    assert str(node.socket) in ran.err
    node.socket.write_text("")
    assert "not a socket" in node.images("ls").err


def test_wrong_usage(node: Station) -> None:
    """argparse's own complaints have the same status as ours."""
    assert node.images("pull").status == exits.USAGE
    assert node.images("pull", "--platform", "linux/arm64", "--all-platforms", "x").status == exits.USAGE
    assert node.images("pull", "--platform", "a/b/c/d", "x").status == exits.USAGE


def test_the_page_knows_every_verb_and_status() -> None:
    """docs/images.md lists what there is."""
    page = (Path(__file__).parents[4] / "docs" / "images.md").read_text()
    for verb in VERBS:
        assert f"`{verb}" in page
    stated = dict(line.split(maxsplit=1) for line in exits.TEXT.splitlines()[1:])
    assert set(stated) == {str(n) for n in (*range(9), 130, 141)}
    for number, words in stated.items():
        assert f"| {number} | {words} |\n" in page


def test_a_configuration_that_is_not_ours_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not read it is told of the other way to find the stack."""
    import argparse

    from bulkhead import config
    from bulkhead.cli.images.client import socket_of
    from bulkhead.errors import PermissionDenied

    def refuse(path: object) -> None:
        raise PermissionDenied(f"{path}: Permission denied")

    monkeypatch.setattr(config, "load", refuse)
    with pytest.raises(PermissionDenied, match=r"c\.toml: Permission denied; .* --socket"):
        socket_of(argparse.Namespace(socket=None, config="c.toml"))


@pytest.mark.parametrize("cut", ["tar", "stream", "stranger"])
def test_a_directory_is_whole_or_empty(tmp_path: Path, image: Image, cut: str) -> None:
    """What does not come to its end, or is no part of a layout, leaves nothing that looks like one."""
    files = archives.oci(image)
    data = archives.tar({**files, "../../etc/passwd": b"x"} if cut == "stranger" else files)

    def pieces() -> Iterator[bytes]:
        yield data if cut == "stranger" else data[:2000]
        if cut == "stream":
            raise Unavailable("image-svc went away")

    with pytest.raises((DataLoss, Unavailable, FailedPrecondition)):
        layout.unpack(pieces(), tmp_path / "layout")
    assert list((tmp_path / "layout").iterdir()) == []
    layout.unpack(iter([archives.tar(files)]), tmp_path / "layout")
    assert (tmp_path / "layout" / "index.json").read_bytes() == files["index.json"]
