"""One execution of a CNI plugin: its environment, its input, its answer, its complaint.

Protocol: https://www.cni.dev/docs/spec/ (1.1.0), sections 2 and 5. The plugin runs in our own network namespace,
with our environment (it needs PATH for iptables) plus the CNI_ variables.
"""

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bulkhead import command
from bulkhead.errors import BulkheadError, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable

#: Codes of the specification that mean the configuration, not the moment, is at fault.
_LASTING = frozenset({1, 2, 4, 6, 7})
TRY_AGAIN_LATER = 11
_BUSY_RETRIES = 5


class PluginFailed(Unavailable):
    """A CNI plugin refused; code is the plugin's own error code, 0 if it gave none."""

    cni_code = 0


class PluginMisconfigured(FailedPrecondition):
    """A CNI plugin finds its configuration or version wrong: trying again will not help."""

    cni_code = 0


@dataclass(frozen=True)
class Step:
    """What a plugin is run for: the command, and the names that an error message should show."""

    command: str
    network: str
    plugin: str
    position: str = ""
    interface: str = ""

    def __str__(self) -> str:
        interface = f" {self.interface}" if self.interface else ""
        return f'CNI {self.command}{interface}: network "{self.network}", plugin "{self.plugin}"{self.position}'


def find(plugin: str, directories: Sequence[str]) -> str:
    """Return the path of a plugin, looked for in the plugin directories in order; NotFound names them all."""
    if plugin and "/" not in plugin:
        for directory in directories:
            path = os.path.join(directory, plugin)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
    raise NotFound(
        f'no executable plugin "{plugin}" in {", ".join(directories) or "any directory (none is configured)"}'
    )


def run(
    step: Step,
    directories: Sequence[str],
    conf: Mapping[str, Any],
    variables: Mapping[str, str],
    deadline: float,
    limit: float,
) -> dict[str, Any]:
    """Run a plugin until the deadline (monotonic seconds, a chain's limit after its beginning) and return its result.

    The result is {} where the command has none. Errors name the step.
    """
    try:
        path = find(step.plugin, directories)
    except NotFound as error:
        raise FailedPrecondition(f"{step}: {error}") from error
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
    environment |= {"CNI_COMMAND": step.command, "CNI_PATH": os.pathsep.join(directories), **variables}
    began = time.monotonic()
    if deadline <= began:
        raise DeadlineExceeded(f"{step}: not started, the chain's {limit:g} s were used up")
    try:
        answer = _run_settled(path, environment, json.dumps(conf).encode(), deadline)
    except DeadlineExceeded as error:
        took = time.monotonic() - began
        raise DeadlineExceeded(f"{step}: killed after {took:.1f} s, the chain has {limit:g} s") from error
    except NotFound as error:
        raise FailedPrecondition(f"{step}: {error}") from error
    if answer.returncode != 0:
        raise _failure(step, answer, time.monotonic() - began)
    return _result(step, answer)


def _run_settled(path: str, environment: Mapping[str, str], stdin: bytes, deadline: float) -> command.Result:
    """Run the plugin, waiting out an installer that is just writing its binary (ETXTBSY)."""
    for attempt in range(_BUSY_RETRIES):
        try:
            return command.run([path], timeout=deadline - time.monotonic(), input=stdin, env=environment)
        except OSError as error:
            if error.errno != errno.ETXTBSY or attempt == _BUSY_RETRIES - 1:
                raise Unavailable(f"{path}: {error.strerror}") from error
            time.sleep(0.2)
    raise AssertionError("the last attempt returns or raises")


def _result(step: Step, answer: command.Result) -> dict[str, Any]:
    if step.command != "ADD":
        return {}
    try:
        result = json.loads(answer.stdout)
    except (ValueError, RecursionError) as error:
        shown = answer.stdout[:200].decode(errors="replace").strip() or "nothing"
        raise PluginFailed(f"{step}: succeeded, but its answer is not JSON ({error}): {shown}") from error
    if not isinstance(result, dict):
        raise PluginFailed(f"{step}: succeeded, but its answer is no JSON object: {str(result)[:200]}")
    return result


def _failure(step: Step, answer: command.Result, took: float) -> BulkheadError:
    """Return the error of a plugin that exited with a status other than 0."""
    where = f"{step}: failed after {took:.1f} s"
    try:
        error = json.loads(answer.stdout)
        code, message, details = int(error["code"]), str(error["msg"]), str(error.get("details") or "")
    except (ValueError, KeyError, TypeError):
        return PluginFailed(f"{where}: exit status {answer.returncode}: {answer.complaint}")
    kind = PluginMisconfigured if code in _LASTING else PluginFailed
    failure = kind(f"{where}: {message} (code {code})" + (f": {details}" if details else ""))
    failure.cni_code = code
    return failure
