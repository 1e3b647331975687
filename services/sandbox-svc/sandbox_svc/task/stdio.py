"""How a container's stdio is named in Task.Create of our own shim: it writes the CRI log itself."""

from typing import NamedTuple
from urllib.parse import quote

from sandbox_svc.store.records import ContainerRecord


class Names(NamedTuple):
    """The three strings of Task.Create."""

    stdin: str
    stdout: str
    stderr: str


def names(record: ContainerRecord, line_size: int) -> Names:
    """Return a container's stdio; without a log path its output is read and dropped, for a full pipe would block it.

    line_size is max_container_log_line_size in bytes. A terminal has one output stream.
    """
    log = f"cri-log://{quote(record.log_path)}?max_line_size={line_size}"
    stdin = f"cri-stdin://?once={int(record.config.stdin_once)}" if record.config.stdin else ""
    return Names(stdin, log, "" if record.config.tty else log)
