"""Pre-registered plugins: programs `NN-name` of plugin_path, started with a connected socket and their settings."""

import logging
import os
import re
import shutil
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from bulkhead import command
from bulkhead.errors import NotFound
from sandbox_svc.nri.plugin import Plugin
from sandbox_svc.nri.registry import Registry

logger = logging.getLogger(__name__)

#: Bytes of a plugin's settings, which are sent to it in one message.
SETTINGS_LIMIT = 1 << 20

_NAME = re.compile(r"([0-9]{2})-(.+)")
_WASM = b"\0asm\1\0\0\0"


@dataclass(frozen=True)
class Program:
    """A plugin's program, and the content of its file of settings."""

    index: str
    base: str
    path: Path
    settings: str


def discover(plugin_path: str, config_path: str) -> list[Program]:
    """Return the programs in plugin_path, by name; one that cannot be used is logged and left out.

    Settings are <config_path>/NN-name.conf or, without that, <config_path>/name.conf, or empty.
    """
    try:
        entries = sorted(os.scandir(plugin_path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.error("NRI plugins of %s are not started: %s", plugin_path, error.strerror)
        return []
    found = []
    for entry in entries:
        try:
            program = _program(Path(entry.path), Path(config_path))
        except (OSError, ValueError) as error:
            logger.error("NRI plugin %s is not started: %s", entry.path, error)
        else:
            found += [program] if program else []
    return found


def _program(path: Path, config_path: Path) -> Program | None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return None
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError('its name is not "NN-name" with two digits')
    with path.open("rb") as file:
        if file.read(len(_WASM)) == _WASM:
            raise ValueError("WebAssembly plugins are not supported")
    return Program(match[1], match[2], path, _settings(config_path, match[1], match[2]))


def _settings(config_path: Path, index: str, base: str) -> str:
    for name in (f"{index}-{base}.conf", f"{base}.conf"):
        try:
            with (config_path / name).open("rb") as file:
                data = file.read(SETTINGS_LIMIT + 1)
        except FileNotFoundError:
            continue
        if len(data) > SETTINGS_LIMIT:
            raise ValueError(f"{config_path / name} is longer than {SETTINGS_LIMIT} bytes")
        return data.decode()
    return ""


def start(program: Program, registry: Registry) -> Plugin:
    """Start a program and return it as a plugin; NotFound if it cannot be started.

    It gets three variables of environment and nothing else of ours, and is killed when the calling thread ends.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        process = command.start(
            [*_dying_with_us(), str(program.path)],
            env={
                "NRI_PLUGIN_NAME": program.base,
                "NRI_PLUGIN_IDX": program.index,
                "NRI_PLUGIN_SOCKET": str(theirs.fileno()),
            },
            pass_fds=(theirs.fileno(),),
        )
    except NotFound:
        ours.close()
        raise
    finally:
        theirs.close()
    return registry.plugin(ours, index=program.index, base=program.base, settings=program.settings, process=process)


def _dying_with_us() -> list[str]:
    """Return the prefix that has the kernel kill the program with this service; empty where util-linux is missing."""
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
