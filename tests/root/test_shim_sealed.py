"""The copy of crun that runs without copying itself."""

import fcntl
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox_svc.shim import sealed
from support.shim_pod import Pod, Zygote, until

pytestmark = pytest.mark.root


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that is not a script and answers --version."""
    return Path(shutil.copy("/usr/bin/true", tmp_path / "crun"))


def test_the_copy_stands_for_the_file_on_disk(program: Path) -> None:
    """Nobody can write to the copy, and a package that was upgraded since is what is executed from then on."""
    copy = sealed.Copy()
    assert copy.take(str(program))
    assert copy.program(str(program)) == f"/proc/self/fd/{copy.fd}"
    assert os.pread(copy.fd, 1 << 20, 0) == program.read_bytes()
    assert fcntl.fcntl(copy.fd, fcntl.F_GET_SEALS) == sealed.SEALS
    writer = os.open(f"/proc/self/fd/{copy.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(writer, b"other code")
    os.close(writer)

    shutil.copy("/usr/bin/false", program.with_name("new"))
    program.with_name("new").rename(program)

    assert copy.program(str(program)) == str(program)
    program.unlink()
    assert copy.program(str(program)) == str(program)
    copy.drop()


@pytest.mark.parametrize("attack", ["mode", "writer"])
def test_a_container_that_spoils_the_copy_harms_nobody(attack: str) -> None:
    """An image whose program is /proc/self/exe runs the copy as its owner: it may forbid or block all execution."""
    with Zygote() as zygote:
        pod, later = Pod(zygote, "running", "crun").fork(), Pod(zygote, "later", "crun").fork()
        program = f"/proc/{pod.create('c', 'sleep', '1000')}/exe"
        copy = os.open(program, os.O_RDONLY)
        pod.start("c")
        until(lambda: not os.readlink(program).startswith("/memfd:"))  # nobody executes it any more
        if attack == "mode":
            os.fchmod(copy, 0)
        else:
            writer = os.open(f"/proc/self/fd/{copy}", os.O_RDWR)
            os.close(copy)
            copy = writer
        try:
            assert pod.exec_sync("c", "echo", "well").stdout == b"well\n"
            later.run("d", "sleep", "1000")
        finally:
            os.fchmod(copy, 0o755)
            os.close(copy)
            later.close()
            pod.close()


@pytest.mark.parametrize("content", [b"#!/bin/sh\nexit 0\n", b"\x7fELF and then nothing"])
def test_what_does_not_run_from_a_copy_runs_from_its_file(tmp_path: Path, content: bytes) -> None:
    """A wrapper script, or what the kernel refuses, is left as it is."""
    path = tmp_path / "crun"
    path.write_bytes(content)
    path.chmod(0o755)
    copy = sealed.Copy()
    assert not copy.take(str(path))
    assert (copy.fd, copy.program(str(path))) == (-1, str(path))


def test_a_program_that_hangs_holds_nobody_up(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crun that says nothing is not used as a copy; the zygote, which every new pod waits for, begins."""
    spawn, spawned = os.posix_spawn, list[int]()

    def hang(path: str, arguments: object, environment: dict[str, str], **more: Any) -> int:
        spawned.append(spawn("/usr/bin/sleep", ["sleep", "60"], environment, **more))
        return spawned[0]

    monkeypatch.setattr(os, "posix_spawn", hang)
    monkeypatch.setattr(sealed, "PATIENCE", 0.1)
    began, copy = time.monotonic(), sealed.Copy()
    assert not copy.take(str(program))
    assert time.monotonic() - began < 40
    assert copy.fd == -1
    with pytest.raises(ChildProcessError):
        os.waitpid(spawned[0], os.WNOHANG)


def test_shims_run_the_copy() -> None:
    """A created container's process, which is crun until Start, runs from the copy that the zygote made."""
    with Zygote() as zygote:
        pod = Pod(zygote, "sealed", "crun").fork()
        pid = pod.create("c", "sleep", "1000")
        runs_from = os.readlink(f"/proc/{pid}/exe")
        pod.start("c")
        pod.close()
    assert runs_from == f"/memfd:{sealed.NAME} (deleted)"
