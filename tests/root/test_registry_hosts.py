"""hosts.toml means to us what it means to containerd: the same hosts, in the same order, asked in the same way."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bulkhead.config.model import Registry
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.containerd import Containerd
from support.fake_registry import FakeRegistry, Rule, fake_registry
from support.image_node import Node
from support.images import Image, Layer

pytestmark = pytest.mark.root

#: Set up by a case: the three registries by letter, and the image's name and its digest.
Hosts = dict[str, FakeRegistry]
#: What was asked for, and by whom in turn: (letter, path prefix, ns, X-Test header).
Asked = dict[str, list[tuple[str, str, str]]]


@dataclass(frozen=True)
class Case:
    """A configuration and what the registries do."""

    name: str
    #: hosts.toml by directory; {a}, {b}, {c} are addresses, {port} is c's port.
    files: dict[str, str]
    image: str
    #: Which registries hold the image, below which path if it is not /v2/.
    held: dict[str, str] = field(default_factory=lambda: {"a": "", "b": "", "c": ""})
    rules: dict[str, tuple[str, Rule]] = field(default_factory=dict)
    by_digest: bool = False


def refuse(status: int) -> Rule:
    """Answer with a status."""
    return lambda handler: handler.reply(status)


MIRRORS = 'server = "http://{c}"\n[host."http://{a}"]\n[host."http://{b}"]\n'
CASES = [
    Case("first of three", {"q.example": MIRRORS}, "q.example/app:1"),
    Case("second has it", {"q.example": MIRRORS}, "q.example/app:1", {"b": "", "c": ""}),
    Case("server has it", {"q.example": MIRRORS}, "q.example/app:1", {"c": ""}),
    Case("first is broken", {"q.example": MIRRORS}, "q.example/app:1", rules={"a": ("/v2/", refuse(404))}),
    Case("no layers at the first", {"q.example": MIRRORS}, "q.example/app:1", rules={"a": ("/blobs/", refuse(404))}),
    Case("forbidden at the first", {"q.example": MIRRORS}, "q.example/app:1", rules={"a": ("/blobs/", refuse(403))}),
    Case(
        "capabilities",
        {
            "q.example": 'server = "http://{c}"\n[host."http://{a}"]\ncapabilities = ["pull"]\n'
            '[host."http://{b}"]\ncapabilities = ["resolve"]\n'
        },
        "q.example/app:1",
    ),
    Case(
        "pull is enough for a digest",
        {"q.example": 'server = "http://{c}"\n[host."http://{a}"]\ncapabilities = ["pull"]\n'},
        "q.example/app:1",
        by_digest=True,
    ),
    Case(
        "paths",
        {
            "q.example": 'server = "http://{c}/base"\n[host."http://{a}/own/v2"]\noverride_path = true\n'
            '[host."http://{b}/sub"]\n'
        },
        "q.example/app:1",
        {"b": "/sub/v2/"},
    ),
    Case(
        "headers",
        {
            "q.example": 'server = "http://{c}"\n[host."http://{a}"]\n[host."http://{a}".header]\nX-Test = "one"\n'
            '[host."http://{b}"]\nheader = {{X-Test = ["two"]}}\n'
        },
        "q.example/app:1",
        {"b": ""},
    ),
    Case("default directory", {"_default": MIRRORS}, "other.example/app:1", {"b": ""}),
    Case(
        "own directory before the default",
        {"_default": 'server = "http://{a}"', "q.example": 'server = "http://{b}"'},
        "q.example/app:1",
    ),
    Case(
        "port in the directory",
        {"q.example_5000_": 'server = "http://{a}"', "q.example:5000": 'server = "http://{b}"'},
        "q.example:5000/app:1",
    ),
    Case("port with a colon", {"q.example:5000": 'server = "http://{b}"'}, "q.example:5000/app:1"),
    Case("mirror of a local registry", {"127.0.0.1_{port}_": '[host."http://{a}"]\n'}, "{c}/app:1", {"c": ""}),
    Case("local registry", {}, "{c}/app:1"),
    Case("http with settings for TLS", {"q.example": 'server = "http://{a}"\nskip_verify = true\n'}, "q.example/app:1"),
    Case(
        "sub-tables before their host",
        {"q.example": '[host."http://{b}".header]\nX-Test = "x"\n[host."http://{a}"]\n'},
        "q.example/app:1",
    ),
    Case("empty file", {"{c}": ""}, "{c}/app:1"),
]


@pytest.fixture(scope="module")
def hosts(own_network: None) -> Iterator[Hosts]:
    """Run three registries."""
    with ExitStack() as stack:
        yield {letter: stack.enter_context(fake_registry()) for letter in "abc"}


@pytest.fixture(scope="module")
def peer(registry: str) -> Iterator[Containerd]:
    """Run containerd 2.x, built from its module."""
    binary = build("containerd")["containerd"]
    with Containerd(registry, str(binary), str(binary.parent), number=94) as running:
        yield running


def prepare(case: Case, hosts: Hosts, certs: Path) -> str:
    """Set the registries and the configuration up for one pull of a new image, and return its name."""
    image = Image([Layer().file("etc/unique", os.urandom(16).hex()).tar()])
    digest = ""
    for letter, made in hosts.items():
        made.manifests.clear()
        made.blobs.clear()
        made.rules.clear()
        made.seen.clear()
        if letter in case.held:
            digest = made.push(f"{case.held[letter]}app", "1", image)
        if letter in case.rules:
            made.on(*case.rules[letter])
    addresses = {letter: made.address for letter, made in hosts.items()}
    addresses["port"] = addresses["c"].rpartition(":")[2]
    for name, text in case.files.items():
        directory = certs / name.format(**addresses)
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(text.format(**addresses))
    name = case.image.format(**addresses)
    return name.rpartition(":")[0] + f"@{digest}" if case.by_digest else name


def asked(hosts: Hosts) -> Asked:
    """Return what each thing was asked of, in order; how often a host was asked for it in a row does not matter."""
    found: Asked = {}
    requests = sorted((each.at, letter, each) for letter, made in hosts.items() for each in made.seen)
    for _, letter, each in requests:
        path, _, query = each.path.partition("?")
        thing = "/".join(path.split("/")[-2:])
        prefix = path.removesuffix(thing)
        entry = (letter, f"{prefix}?{query}", each.headers.get("x-test", ""))
        entries = found.setdefault(thing, [])
        if not entries or entries[-1] != entry:
            entries.append(entry)
    return found


def clear(certs: Path, keep: set[str]) -> None:
    """Remove the configuration of a case."""
    for directory in certs.iterdir():
        if directory.name not in keep:
            (directory / "hosts.toml").unlink()
            directory.rmdir()


def run(case: Case, hosts: Hosts, certs: Path, pull: Callable[[str], object]) -> list[list[tuple[str, str, str]]]:
    """Pull once and return whom each thing was asked of: a tag, a manifest, a configuration, a layer."""
    keep = {directory.name for directory in certs.iterdir()}
    try:
        pull(prepare(case, hosts, certs))
    finally:
        clear(certs, keep)
    return sorted(asked(hosts).values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name).replace(" ", "-"))
def test_same_hosts_as_containerd(peer: Containerd, hosts: Hosts, tmp_path: Path, case: Case) -> None:
    """Every document and blob is asked of the same hosts in the same order, under the same path, ns= and headers."""
    images = peer.image_service()

    def theirs(name: str) -> None:
        images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=name)), timeout=60)

    expected = run(case, hosts, peer.directory / "certs.d", theirs)
    with tempfile.TemporaryDirectory(prefix="bhhosts") as scratch:
        certs = Path(scratch) / "certs.d"
        certs.mkdir()
        node = Node(Path(scratch) / "root", registry=Registry(config_path=("/nonexistent", str(certs))))
        try:
            found = run(case, hosts, certs, node.pull)
        finally:
            node.close()

    assert found == expected
    assert found
