"""Which plugins are run, in which order: `/etc/nri/conf.json`, then `/etc/nri/resource.d/*.conf` by name."""

import json
import os
from dataclasses import dataclass
from typing import Any

from bulkhead.errors import FailedPrecondition

#: The only version of the interface.
VERSION = "0.1"
#: Bytes of a file, and plugins of all files together.
MAX_FILE = 1 << 20
MAX_PLUGINS = 64


@dataclass(frozen=True)
class Plugin:
    """One entry of a file: the name of its binary, and the configuration it is given as it stands there."""

    type: str
    conf: Any = None


def load(file: str, directory: str) -> list[Plugin]:
    """Return the plugins of a file and of a directory's *.conf; a path that is "" or is not there names none.

    FailedPrecondition names the file and what is wrong with it.
    """
    plugins = [plugin for path in _files(file, directory) for plugin in _read(path)]
    if len(plugins) > MAX_PLUGINS:
        raise FailedPrecondition(f"NRI exec plugins: {len(plugins)} in {file} and {directory}, at most {MAX_PLUGINS}")
    return plugins


def _files(file: str, directory: str) -> list[str]:
    found = [file] if file and os.path.exists(file) else []
    try:
        names = sorted(os.listdir(directory)) if directory else []
    except (FileNotFoundError, NotADirectoryError):
        names = []
    return found + [os.path.join(directory, name) for name in names if name.endswith(".conf")]


def _read(path: str) -> list[Plugin]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise FailedPrecondition(f"NRI exec plugins: {path}: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise FailedPrecondition(f"NRI exec plugins: {path} has more than {MAX_FILE} bytes")
    try:
        return parse(data)
    except (ValueError, RecursionError) as error:
        raise FailedPrecondition(f"NRI exec plugins: {path}: {error}") from error


def parse(data: bytes) -> list[Plugin]:
    """Return the plugins that a file lists; ValueError says what is wrong with it."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("expected an object with version and plugins")
    version = document.get("version", VERSION)
    if version != VERSION:
        raise ValueError(f"version is {version!r}, expected {VERSION!r}")
    plugins = document.get("plugins")
    if plugins is None:
        return []
    if not isinstance(plugins, list):
        raise ValueError(f"plugins is {plugins!r}, expected an array")
    return [_plugin(entry, index) for index, entry in enumerate(plugins)]


def _plugin(entry: Any, index: int) -> Plugin:
    name = entry.get("type") if isinstance(entry, dict) else None
    # The name of a file in the plugins' directory, never a path out of it.
    if not isinstance(name, str) or not name or "/" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"plugins[{index}].type is {name!r}, expected the name of a binary")
    return Plugin(name, entry.get("conf"))
