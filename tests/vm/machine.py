"""A running virtual machine: booted from copies-on-write of the two disks, gone without a trace afterwards."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from vm.image import Image

#: Seconds. Under emulation on a busy host a boot takes one to two minutes.
BOOT_TIMEOUT = 600
#: Added to a command's own time-out before the machine is given up.
_GRACE = 60
#: Emulation by default: an accelerator that opens may still hang where the host is a guest itself.
_ACCELERATOR = os.environ.get("BULKHEAD_VM_ACCELERATOR", "tcg,thread=multi")


class MachineError(Exception):
    """The machine does not boot or does not answer; the message ends with its console."""


@dataclass(frozen=True)
class Result:
    """What became of a command: exit status (124 when its time was up) and output of both streams."""

    status: int
    output: str


class Machine:
    """One machine; use it as a context manager."""

    def __init__(self, image: Image, payload: Path, *, memory: int = 3072, processors: int = 2) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bhvm"))
        self._command = _command(self.directory, image, payload, memory, processors)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pending = b""
        self.boot_seconds = 0.0

    def __enter__(self) -> "Machine":
        try:
            with (self.directory / "qemu.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Its snapshots of the disks are files here.
                    env=os.environ | {"TMPDIR": str(self.directory)},
                )
            deadline = time.monotonic() + BOOT_TIMEOUT
            self._socket = self._connect(deadline)
            self.boot_seconds = self._answer(deadline)["ready"]
            # What the agent's unit cannot do by itself: the environment at the path that it was made for.
            self.check("mount --bind /payload/bulkhead /usr/lib/bulkhead")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine as if by pulling its plug, and remove its files."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def console(self) -> str:
        """Everything the machine wrote to its serial console, and qemu itself to its standard error."""
        paths = (self.directory / "console", self.directory / "qemu.log")
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def run(self, command: str, timeout: float = 120) -> Result:
        """Run a shell command in the machine; it and its process group are killed after timeout seconds."""
        assert self._socket is not None
        deadline = time.monotonic() + timeout + _GRACE
        self._socket.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")
        output: list[str] = []
        while True:
            message = self._answer(deadline)
            if "status" in message:
                return Result(message["status"], "".join(output))
            output.append(message.get("output", ""))

    def check(self, command: str, timeout: float = 120) -> str:
        """Run a command that must succeed and return its output without the last line feed."""
        done = self.run(command, timeout)
        assert done.status == 0, f"{command}: status {done.status}\n{done.output[-8000:]}"
        return done.output.rstrip("\n")

    def _connect(self, deadline: float) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self.directory / "agent.sock"))
            except OSError:
                connection.close()
                self._alive(deadline)
                time.sleep(0.1)
            else:
                connection.settimeout(1)
                return connection

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._pending:
            self._alive(deadline)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise MachineError(f"the machine has ended:\n{self.console[-4000:]}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _alive(self, deadline: float) -> None:
        if self._process is None or self._process.poll() is not None:
            raise MachineError(f"the machine has ended:\n{self.console[-4000:]}")
        if time.monotonic() > deadline:
            raise MachineError(f"no answer in time:\n{self.console[-4000:]}")


def _command(directory: Path, image: Image, payload: Path, memory: int, processors: int) -> list[str]:
    kernel = "root=/dev/vda rw console=ttyS0 panic=-1 systemd.unified_cgroup_hierarchy=1 quiet mitigations=off"
    disks = [f"file={path},format=raw,if=virtio,snapshot=on,cache=unsafe" for path in (image.disk, payload)]
    return [
        # However this process ends, the machine ends with it.
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "nice",
            "qemu-system-x86_64",
            "-accel",
            _ACCELERATOR,
            "-cpu",
            "max",
            "-smp",
            str(processors),
        ),
        *("-m", str(memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image.directory / "vmlinuz"), "-initrd", str(image.directory / "initrd.img")),
        *("-append", kernel),
        *(word for disk in disks for word in ("-drive", disk)),
        *("-serial", f"file:{directory}/console", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={directory}/agent.sock,server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=agent"),
    ]
