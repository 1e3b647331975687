"""Paths of a layer lead to directories of that layer and nowhere else."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument, ResourceExhausted
from image_svc.unpack.tree import Directory, Tree, components


class Made:
    """Records what would be made on disk."""

    def __init__(self, depth: int = 32, length: int = 4095) -> None:
        self.paths: list[bytes] = []
        self.tree = Tree(self.imply, depth, length)

    def imply(self, parent: Directory, name: bytes) -> bool:
        self.paths.append(parent.path() + b"/" + name)
        return False


def test_missing_directories_are_made_once() -> None:
    """A path makes its directories, a second look at it none, and spelling it otherwise none either."""
    made = Made()

    first = made.tree.directory(b"a/b")
    again = [made.tree.directory(path) for path in (b"a/b", b"./a//b", b"/a/b/", b"a/./b")]

    assert made.paths == [b"./a", b"a/b"]
    assert set(map(id, again)) == {id(first)}
    assert (first.path(), first.metadata) == (b"a/b", None)


@pytest.mark.parametrize("path", [b"..", b"a/..", b"../a", b"a/../../b", b"/.."])
def test_climbing_is_refused(path: bytes) -> None:
    """A path with `..` anywhere is refused before anything is made."""
    made = Made()

    with pytest.raises(InvalidArgument, match=r"climbs"):
        made.tree.directory(path)
    assert made.paths == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [(b"usr/lib", b"usr/lib"), (b"/usr/lib", b"usr/lib"), (b"../usr/lib", b"usr/lib"), (b"usr/./lib/", b"usr/lib")],
)
def test_links_are_followed_within_the_layer(target: bytes, expected: bytes) -> None:
    """A link to a directory of the layer, relative or absolute, stands for it; the root is above nothing."""
    made = Made()
    made.tree.directory(b"usr/lib")
    made.tree.root.children[b"lib"] = target

    assert made.tree.directory(b"lib").path() == expected
    assert made.tree.directory(b"lib/x").path() == expected + b"/x"
    assert made.tree.find(b"lib/y") is None


@pytest.mark.parametrize("target", [b"/etc", b"../../../etc", b"etc", b"/proc/self/root", b"loop"])
def test_links_out_of_the_layer_are_refused(target: bytes) -> None:
    """A link to something that is not a directory of this layer makes nothing and is refused."""
    made = Made()
    made.tree.root.children[b"evil"] = target
    made.tree.root.children[b"loop"] = b"evil" if target == b"loop" else b"loop"

    with pytest.raises(InvalidArgument, match=r"symbolic link"):
        made.tree.directory(b"evil/x")
    assert made.paths == []


def test_a_link_that_was_replaced_is_not_remembered() -> None:
    """After a link was followed and then replaced by a directory, its path means the directory."""
    made = Made()
    made.tree.directory(b"a")
    made.tree.root.children[b"l"] = b"a"
    assert made.tree.directory(b"l").path() == b"a"

    made.tree.forget(made.tree.root, b"l", lambda fd: None)

    assert made.tree.directory(b"l").path() == b"l"


def test_forgetting_takes_everything_below_with_it() -> None:
    """A directory that was removed is dead with all below it, its descriptors are closed, and it can be made anew."""
    made, closed = Made(), list[int]()
    deep = made.tree.directory(b"a/b/c")
    deep.handle = 7
    made.tree.forget(made.tree.root, b"a", closed.append)

    assert closed == [7]
    assert not deep.live
    assert made.tree.find(b"a/b/c") is None
    assert made.tree.directory(b"a/b/c") is not deep


def test_depth_and_length_are_bounded() -> None:
    """A path of more components or bytes than allowed is refused and names the limit."""
    with pytest.raises(ResourceExhausted, match="deeper than 3"):
        Made(depth=3).tree.directory(b"a/b/c/d")
    with pytest.raises(ResourceExhausted, match="longer than 20"):
        Made(length=20).tree.directory(b"a" * 10 + b"/" + b"b" * 11)


def test_chains_of_links_do_not_take_long() -> None:
    """Links that multiply with every step are cut off instead of being followed."""
    made = Made()
    made.tree.directory(b"d")
    made.tree.root.children[b"l0"] = b"d"
    for number in range(1, 30):
        made.tree.root.children[b"l%d" % number] = b"/".join([b"l%d" % (number - 1)] + [b"..", b"l0"] * 200)

    began = time.process_time()
    with pytest.raises(InvalidArgument, match="too many symbolic links"):
        made.tree.directory(b"l29")
    assert time.process_time() - began < 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"b", b"c", b"a/b", b"b/c", b"c/a/b"]),
            st.sampled_from([b"", b"/a", b"..", b"../..", b"b", b"./c/../a", b"/b/c", b"a/b/c"]),
        ),
        max_size=12,
    )
)
def test_nothing_is_made_outside(steps: list[tuple[bytes, bytes]]) -> None:
    """Whatever links stand where, every directory found has the root above it and no `..` in its path."""
    made = Made()
    for path, target in steps:
        try:
            parent = made.tree.directory(path)
        except (InvalidArgument, ResourceExhausted):
            continue
        if target and b"x" not in parent.children:
            parent.children[b"x"] = target
        top = parent
        while top.parent is not None:
            top = top.parent
        assert top is made.tree.root
        assert components(parent.path()) == [part for part in parent.path().split(b"/") if part != b"."]
