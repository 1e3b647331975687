"""Looking for a secret in a process's memory."""

import contextlib
from collections.abc import Sequence
from pathlib import Path


def found(pid: int, traces: Sequence[bytes]) -> int:
    """Return how many of the traces are somewhere in a process's writable memory; one that has ended has none."""
    hits: set[int] = set()
    with (
        contextlib.suppress(ProcessLookupError, FileNotFoundError),
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
    ):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, permissions = line.split()[:2]
            if not permissions.startswith("rw"):
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            with contextlib.suppress(OSError):
                memory.seek(begin)
                data = memory.read(end - begin)
                hits |= {number for number, trace in enumerate(traces) if trace in data}
    return len(hits)
