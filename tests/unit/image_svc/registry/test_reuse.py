"""What is asked one after the other is asked on one connection: each new one costs two or three round trips."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.fake_registry import FakeRegistry, Handler, fake_registry
from support.image_node import Node
from support.images import Image, digest


@pytest.fixture
def single(image: Image) -> Image:
    """Make an image with one layer, whose pull asks for one thing after the other."""
    return replace(image, layers=image.layers[:1])


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    """Run another fake registry, for what the first one does not hold itself."""
    with fake_registry() as made:
        yield made


def connections(registry: FakeRegistry) -> int:
    """Return how many connections a registry's requests came on."""
    return len({each.port for each in registry.seen})


def test_a_pull(node: Node, registry: FakeRegistry, single: Image) -> None:
    """The question what a name stands for, manifest, configuration and layer come on the same connection."""
    registry.push("app", "1", single)

    node.pull(f"{registry.address}/app:1")

    assert [each.method for each in registry.seen] == ["HEAD", "GET", "GET", "GET"]
    assert connections(registry) == 1


@pytest.mark.parametrize("body", [b"", b'<a href="elsewhere">Moved</a>'], ids=["empty", "short"])
def test_redirects(node: Node, registry: FakeRegistry, second: FakeRegistry, single: Image, body: bytes) -> None:
    """A registry that keeps its blobs elsewhere is asked for each of them on the connection there is."""
    registry.push("app", "1", single)
    second.blobs.update(registry.blobs)
    registry.on("/blobs/", lambda handler: handler.reply(307, body, Location=f"http://{second.address}{handler.path}"))

    assert node.pull(f"{registry.address}/app:1") == digest(single.blobs()[0])

    assert len(registry.seen) == 4
    assert (connections(registry), connections(second)) == (1, 1)


@pytest.mark.parametrize("length", ["100", "100000", ""], ids=["cut", "long", "none"])
def test_redirects_with_a_body_that_is_not_there(
    node: Node, registry: FakeRegistry, second: FakeRegistry, single: Image, length: str
) -> None:
    """A redirect is followed whatever its body comes to."""
    registry.push("app", "1", single)
    second.blobs.update(registry.blobs)

    def cut(handler: Handler) -> bool:
        lines = [f"Location: http://{second.address}{handler.path}", *([f"Content-Length: {length}"] if length else [])]
        handler.wfile.write("\r\n".join(["HTTP/1.1 307 Moved", *lines, "", "<a"]).encode())
        return handler.break_off()

    registry.on("/blobs/", cut)

    assert node.pull(f"{registry.address}/app:1") == digest(single.blobs()[0])
