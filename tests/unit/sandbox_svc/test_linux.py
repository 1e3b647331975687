import errno
import os
from pathlib import Path

import pytest

from sandbox_svc import linux


def test_check_names_call_and_target() -> None:
    """A failed call's error carries errno, the call's name and what it was about."""
    with pytest.raises(FileNotFoundError, match="umount2") as caught:
        linux.umount2("/does/not/exist")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/does/not/exist"


def test_mount_refuses_options_the_kernel_would_cut() -> None:
    """More than one page of options is an error before the kernel sees it."""
    with pytest.raises(OSError, match="5000 bytes, the kernel takes 4095") as caught:
        linux.mount("overlay", "/does/not/exist", "overlay", 0, "x" * 5000)
    assert caught.value.errno == errno.E2BIG


def test_openat2_stays_beneath(tmp_path: Path) -> None:
    """RESOLVE_BENEATH opens what is below and refuses what leads out; the descriptor is closed on exec."""
    (tmp_path / "inside").write_text("x")
    (tmp_path / "out").symlink_to("/etc/passwd")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        fd = linux.openat2("inside", os.O_RDONLY, dirfd=directory, resolve=linux.RESOLVE_BENEATH)
        assert not os.get_inheritable(fd)
        os.close(fd)
        with pytest.raises(OSError, match="openat2") as caught:
            linux.openat2("out", os.O_RDONLY, dirfd=directory, resolve=linux.RESOLVE_BENEATH)
        assert caught.value.errno == errno.EXDEV
    finally:
        os.close(directory)


def test_setns_needs_a_namespace(tmp_path: Path) -> None:
    """A descriptor that is no namespace is refused with the descriptor named."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=f"fd {fd}"):
            linux.setns(fd, linux.CLONE_NEWNET)
    finally:
        os.close(fd)
