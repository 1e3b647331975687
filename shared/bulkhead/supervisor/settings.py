"""The configuration, read by a process of its own.

The file may hold registry passwords, and services are forks of the supervisor: what it had read, they would hold. So a
child reads the file, hands the supervisor the copy without secrets that most services get too, writes the services'
copies when told to, and ends.
"""

import json
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from bulkhead.config import Config, examine
from bulkhead.config.resolved import build, resolved_for
from bulkhead.errors import BulkheadError, from_code
from bulkhead.launch import users
from bulkhead.supervisor import provision
from bulkhead.supervisor.roster import START, config_file


class Settings:
    """The child's end of the supervisor."""

    def __init__(self, path: str | None) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(theirs, path)
        theirs.close()
        self._stream = ours.makefile("rb")
        self._socket = ours
        answer = self._answer()
        #: Without registry credentials.
        self.config: Config = build(answer["config"])
        self.warnings: list[str] = answer["warnings"]

    def write(self) -> None:
        """Have every service's copy written, below the state directory, and the child end."""
        self._socket.sendall(b"write\n")
        try:
            self._answer()
        finally:
            self.close()

    def close(self) -> None:
        """Let the child end, if it has not."""
        if self._pid:
            self._stream.close()
            self._socket.close()
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _answer(self) -> dict[str, Any]:
        """Return the child's next line, or raise the error in it."""
        line = self._stream.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"code": 13, "error": "the configuration's reader died"}
        if "error" in answer:
            self.close()
            raise from_code(answer["code"], answer["error"])
        return answer


def _serve(connection: socket.socket, path: str | None) -> NoReturn:
    status = 1
    try:
        with connection, connection.makefile("rwb", buffering=0) as stream:
            loaded = _say(stream.write, lambda: _load(path))
            if loaded and stream.readline() == b"write\n":
                _say(stream.write, lambda: (_write(loaded), {}))
        status = 0
    finally:
        os._exit(status)


def _load(path: str | None) -> tuple[Config, dict[str, Any]]:
    loaded = examine(path)
    public = json.loads(resolved_for("supervisor", loaded.config))
    return loaded.config, {"config": public, "warnings": loaded.warnings}


def _write(config: Config) -> Config:
    people = users.look_up(config.bulkhead.users)
    for service in START:
        provision.write_config(config, people, service, config_file(config, service))
    return config


def _say(write: Callable[[bytes], Any], work: Callable[[], tuple[Config, dict[str, Any]]]) -> Config | None:
    """Do the work and write its answer, or its error, as one line."""
    result: Config | None = None
    try:
        result, answer = work()
    except BulkheadError as error:
        answer = {"code": error.code, "error": str(error)}
    except OSError as error:
        answer = {"code": 9, "error": f"{error.filename or 'system call'}: {error.strerror}"}
    write(json.dumps(answer).encode() + b"\n")
    return result
