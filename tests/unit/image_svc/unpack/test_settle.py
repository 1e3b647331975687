"""Where a directory that a layer implied is found in the layers beneath."""

import errno
import itertools
import os
from collections.abc import Sequence
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st

from image_svc.unpack import paths
from image_svc.unpack.settle import Lower, Search

_NAMES = (b"a", b"b")
_PATHS = [b"/".join(parts) for n in (1, 2, 3) for parts in itertools.product(_NAMES, repeat=n)]


class Imagined(Lower):
    """A layer given by its directories, its files, and the directories that are opaque; it counts the looks at it."""

    #: All that were opened, in order.
    opened: ClassVar[list["Imagined"]] = []

    def __init__(self, directories: set[bytes], files: set[bytes], opaque: set[bytes]) -> None:
        super().__init__("imagined")
        above = {path.rpartition(b"/")[0] or b"." for path in files}
        self.directories = {each for path in directories | above | {b"."} for each in paths.ancestors(path)}
        self.files = files - self.directories
        self._opaque = opaque & self.directories
        self.looks = 0

    def open(self, path: bytes) -> int:
        """Open anything in place of the directory, or fail as openat2(2) would."""
        self.looks += 1
        for each in reversed(list(paths.ancestors(path))):
            if each in self.files:
                raise OSError(errno.ENOTDIR, "a file")
            if each not in self.directories:
                raise OSError(errno.ENOENT, "nothing")
        self.opened.append(self)
        return os.open("/", os.O_PATH)


def nearest(lowers: Sequence[Imagined], path: bytes) -> Imagined | None:
    """Return what overlayfs would show: the first layer with a directory there that nothing above it hides."""
    for lower in lowers:
        for each in paths.ancestors(path):
            if each in lower.files:
                return None
        if path in lower.directories:
            return lower
        if lower.hides(path):
            return None
    return None


_LAYER = st.builds(
    Imagined,
    st.sets(st.sampled_from(_PATHS), max_size=5),
    st.sets(st.sampled_from(_PATHS), max_size=3),
    st.sets(st.sampled_from([b".", *_PATHS]), max_size=2),
)


@given(st.lists(_LAYER, max_size=4), st.lists(st.sampled_from([b".", *_PATHS]), min_size=1, max_size=12))
def test_a_search_finds_what_overlayfs_would_show(lowers: list[Imagined], wanted: list[bytes]) -> None:
    """In whatever order paths come, each is looked up in the nearest layer whose directory there can be seen."""
    search = Search(lowers)
    for path in wanted:
        expected = nearest(lowers, path)
        fd = search.find(path)
        assert (fd >= 0) == (expected is not None)
        if fd >= 0:
            os.close(fd)
            assert Imagined.opened[-1] is expected


def test_a_new_tree_costs_no_look_at_each_of_its_directories() -> None:
    """Below a directory that no lower layer has, nothing is opened."""
    lower = Imagined({b"a"}, set(), set())
    search = Search([lower])
    assert search.find(b"b") == -1
    looks = lower.looks
    assert [search.find(path) for path in (b"b/a", b"b/a/a", b"b/a/b", b"b/b")] == [-1] * 4
    assert lower.looks == looks


def test_a_deep_path_is_found_in_a_farther_layer() -> None:
    """However deep both layers go, the one that goes further is found."""
    deep = b"/".join([b"a"] * 900)
    lowers = [Imagined({deep}, set(), set()), Imagined({deep + b"/b"}, set(), set())]
    fd = Search(lowers).find(deep + b"/b")
    os.close(fd)
    assert Imagined.opened[-1] is lowers[1]
