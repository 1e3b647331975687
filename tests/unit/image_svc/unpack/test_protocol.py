"""Names and limits, as they cross the helper's socket."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import DataLoss, InvalidArgument
from image_svc.unpack import paths, protocol
from image_svc.unpack.protocol import Limits


@pytest.mark.parametrize(
    "value", ["", "0", "01", "-1", "1/..", "..", "1234567890", "1\n", chr(0x661), "trash", 1, None, ["1"]]
)
def test_only_short_decimals_are_names(value: object) -> None:
    """A name is a decimal number without leading zero, so no name is a path."""
    with pytest.raises(InvalidArgument, match="snapshot name"):
        protocol.name(value)
    assert protocol.name("123456789") == "123456789"


def test_a_stack_has_no_layer_twice() -> None:
    """A repeated layer is named, since overlayfs answers it with ELOOP; so is a stack that is too high."""
    with pytest.raises(InvalidArgument, match="snapshot 2 is named twice"):
        protocol.names(["1", "2", "3", "2"])
    with pytest.raises(InvalidArgument, match="501 snapshots, at most 500"):
        protocol.names([str(number) for number in range(1, 502)])
    with pytest.raises(InvalidArgument, match="expected a list"):
        protocol.names("12")


def test_limits_are_only_lowered() -> None:
    """A request gets what it asks for up to what the configuration allows."""
    bound = Limits(entries=100, bytes=1000, seconds=10)

    assert Limits(entries=50, bytes=5000, seconds=5).within(bound) == Limits(entries=50, bytes=1000, seconds=5)


@given(st.lists(st.binary(min_size=1, max_size=300).filter(lambda path: b"\0" not in path), max_size=50))
def test_lists_of_paths_come_back(values: list[bytes]) -> None:
    """What one step writes the next one reads, in order."""
    fd = os.memfd_create("paths")
    try:
        output = paths.PathList(fd)
        for value in values:
            output.add(value)
        output.flush()
        os.lseek(fd, 0, os.SEEK_SET)

        assert list(paths.read(fd)) == values
        assert output.count == len(values)
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"a\0b", b"x" * 5000 + b"\0" + b"y" * 5000])
def test_a_cut_list_is_data_loss(data: bytes) -> None:
    """A list without its end, or with something that is no path, is refused."""
    fd = os.memfd_create("paths")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        with pytest.raises(DataLoss):
            list(paths.read(fd))
    finally:
        os.close(fd)


def test_ancestors_end_at_the_root() -> None:
    """A path's ancestors are itself, each directory above it and the root."""
    assert list(paths.ancestors(b"a/b/c")) == [b"a/b/c", b"a/b", b"a", b"."]
    assert list(paths.ancestors(b".")) == [b"."]
