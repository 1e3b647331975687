"""Inside the machine: run the commands that arrive on the virtio port, one at a time. Standard library only.

A request is a line `{"command": TEXT, "timeout": SECONDS}`; the answers are lines `{"output": TEXT}` as the output
comes, then `{"status": NUMBER}`: the exit status, negative for a signal, or 124 when the time was up and the command's
process group was killed. At its start the agent says `{"ready": SECONDS}`, the machine's uptime.
"""

import codecs
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import BinaryIO

PORT = "/dev/virtio-ports/agent"
TIMED_OUT = 124


def main() -> None:
    """Serve until the machine is switched off."""
    with open(PORT, "r+b", buffering=0) as port:
        say(port, {"ready": float(Path("/proc/uptime").read_text().split()[0])})
        pending = b""
        while True:
            pending += port.read(65536) or _pause()
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                request = json.loads(line)
                say(port, {"status": run(port, request["command"], request["timeout"])})


def _pause() -> bytes:
    """Reading a port whose other end is closed returns nothing at once."""
    time.sleep(0.2)
    return b""


def run(port: BinaryIO, command: str, timeout: float) -> int:
    """Run a shell command, pass on its output, and return its status."""
    child = subprocess.Popen(
        ["/bin/bash", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert child.stdout is not None
    deadline, decoder = time.monotonic() + timeout, codecs.getincrementaldecoder("utf-8")("replace")
    # What a command leaves running may hold the pipe: the end of the shell is the end, then what is there is read.
    while (ended := child.poll() is not None) or time.monotonic() < deadline:
        if select.select([child.stdout], [], [], 0 if ended else 0.05)[0]:
            if data := os.read(child.stdout.fileno(), 65536):
                say(port, {"output": decoder.decode(data)})
                continue
            if not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline - time.monotonic()))
                continue
        if ended:
            return child.returncode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return TIMED_OUT


def say(port: BinaryIO, message: dict[str, object]) -> None:
    """Write one line, however many writes it takes."""
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[port.write(data) or 0 :]


if __name__ == "__main__":
    main()
