"""The process itself: what it runs, where, with which environment and terminal."""

import copy
from collections.abc import Iterable, Sequence

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.image import ImageConfig, image_config
from sandbox_svc.oci.model import ContainerInput, Json, SandboxInput

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERMINAL = "TERM=xterm"


def apply_to_sandbox(spec: Json, request: SandboxInput) -> None:
    """Run what the pause image says, with nothing added."""
    image = image_config(request.image_config)
    arguments = [*image.entrypoint, *image.cmd]
    if not arguments:
        raise InvalidArgument(f"the sandbox image {request.image_name} has neither Entrypoint nor Cmd")
    process = spec["process"]
    process["args"] = arguments
    process["cwd"] = _directory(image.working_dir or process["cwd"], "the image's WorkingDir")
    _put_environment(process, image.env)


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Set arguments, directory, terminal and environment: the image's first, the request's over them."""
    image = image_config(request.image_config)
    process = spec["process"]
    process["args"] = _arguments(request.config, image)
    if request.config.working_dir:
        process["cwd"] = _directory(request.config.working_dir, "working_dir")
    elif image.working_dir:
        process["cwd"] = _directory(image.working_dir, "the image's WorkingDir")
    added = [DEFAULT_PATH]
    if request.config.tty:
        process["terminal"] = True
        added.append(TERMINAL)
    added.append(f"HOSTNAME={request.sandbox_config.hostname or request.facts.hostname}")
    _put_environment(process, [*added, *image.env, *_requested_environment(request.config)])


def exec_process(container: Json, cmd: Sequence[str], tty: bool) -> Json:
    """Return the container's own process with other arguments and, or without, a terminal."""
    process: Json = copy.deepcopy(container["process"])
    if not cmd:
        raise InvalidArgument("cmd: empty")
    process["args"] = [_text(argument, f"cmd[{index}]") for index, argument in enumerate(cmd)]
    process.pop("terminal", None)
    process.pop("consoleSize", None)
    if tty:
        process["terminal"] = True
        _put_environment(process, [TERMINAL])
    return process


def merged_environment(*layers: Iterable[str]) -> list[str]:
    """Return the variables of all layers, a later one in the place of an earlier; a name without "=" removes it."""
    found: dict[str, str | None] = {}
    for layer in layers:
        for entry in layer:
            name, equals, _ = entry.partition("=")
            if equals:
                found[name] = entry
            else:
                found.pop(name, None)
    return [entry for entry in found.values() if entry is not None]


def _arguments(config: cri.ContainerConfig, image: ImageConfig) -> list[str]:
    """Return command and arguments: a command replaces entrypoint and Cmd, arguments replace only Cmd."""
    command = [_text(item, f"command[{index}]") for index, item in enumerate(config.command)]
    arguments = [_text(item, f"args[{index}]") for index, item in enumerate(config.args)]
    if not command:
        arguments = arguments or list(image.cmd)
        # An Entrypoint of one empty string is how images say "none" (moby).
        command = [] if image.entrypoint == ("",) else list(image.entrypoint)
    if not command and not arguments:
        raise InvalidArgument("command: none in the request, and the image has neither Entrypoint nor Cmd")
    return [*command, *arguments]


def _requested_environment(config: cri.ContainerConfig) -> list[str]:
    found = []
    for index, entry in enumerate(config.envs):
        field = f"envs[{index}]"
        if not entry.key or "=" in entry.key:
            raise InvalidArgument(f"{field}.key: {entry.key!r} is no name of a variable")
        try:
            value = entry.value.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{field}.value ({entry.key}): not UTF-8, which the OCI spec cannot hold") from error
        found.append(f"{_text(entry.key, field)}={_text(value, field)}")
    return found


def _put_environment(process: Json, added: Iterable[str]) -> None:
    environment = merged_environment(process.get("env") or (), added)
    if environment:
        process["env"] = environment


def _directory(path: str, field: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(f"{field}: want an absolute path, got {path!r}")
    return _text(path, field)


def _text(value: str, field: str) -> str:
    if "\0" in value:
        raise InvalidArgument(f"{field}: a NUL byte cannot be passed to a process")
    return value
