"""What a session ends with, as the remote command protocols say it: a v1.Status in JSON, or plain text before v4."""

import json
from dataclasses import dataclass
from typing import Any

from stream_svc.shim import Exit


@dataclass(frozen=True)
class Outcome:
    """Success, an exit code, or an error that is no exit code.

    `code` is None unless a process ended with a code other than 0; `error` is empty unless something went wrong.
    """

    code: int | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """Return "ok", "exit" or "error", for metrics and logs."""
        return "exit" if self.code is not None else "error" if self.error else "ok"

    def encode(self, version: int) -> bytes:
        """Return what goes on the error stream: JSON from version 4 on, before that text, nothing for success."""
        if version >= 4:
            return json.dumps(self._status()).encode()
        return self._message().encode()

    def _message(self) -> str:
        if self.code is not None:
            reason = f": {self.error}" if self.error else ""
            return f"command terminated with non-zero exit code: {self.code}{reason}"
        return f"Internal error occurred: {self.error}" if self.error else ""

    def _status(self) -> dict[str, Any]:
        """Return the v1.Status, as k8s.io/cri-streaming makes it."""
        status: dict[str, Any] = {"metadata": {}, "status": "Success"}
        if self.code is not None:
            causes = [{"reason": "ExitCode", "message": str(self.code)}]
            status |= {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}
        elif self.error:
            status |= {"status": "Failure", "reason": "InternalError", "code": 500}
        if message := self._message():
            status["message"] = message
        return status


def of_exec(ended: Exit) -> Outcome:
    """Return the outcome of an exec'd process; clients read codes from 0 to 255 only."""
    if ended.code == 0:
        return Outcome(error=ended.message)
    return Outcome(code=ended.code if 0 < ended.code < 256 else 255, error=ended.message)
