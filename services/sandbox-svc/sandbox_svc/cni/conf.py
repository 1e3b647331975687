"""CNI configuration files: read, checked and turned into lists, by libcni's rules.

A network is a dict of the 1.x list form: `name`, `cniVersion`, `plugins` and what else the file says. Files ending in
.conf, .conflist and .json count, in the order of their names; of two forms, .conflist holds a list and the others
one plugin, which becomes a list of one.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead.errors import InvalidArgument

#: The newest version of the specification spoken here.
NEWEST = (1, 1, 0)
_EXTENSIONS = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")

Network = dict[str, Any]

#: What a directory looked like: for each file its name, inode, size and time; None where there is no directory.
Fingerprint = tuple[tuple[str, int, int, int], ...] | None


@dataclass(frozen=True)
class Loaded:
    """What a configuration directory holds: the networks to use, every file seen, and why there are none."""

    networks: tuple[Network, ...] = ()
    files: tuple[str, ...] = ()
    problem: str = ""


def version(network: Network) -> tuple[int, ...]:
    """Return a network's cniVersion as numbers; a list without one speaks 0.1.0."""
    return tuple(int(part) for part in str(network.get("cniVersion") or "0.1.0").split("."))


def fingerprint(directory: Path | str, depth: int = 1) -> Fingerprint:
    """Return what must change when the directory's configuration does. Takes some 30 µs.

    Folders are looked into, since `<network name>/*.conf` may hold further plugins of a list.
    """
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if depth and entry.is_dir():
                    found += [
                        (f"{entry.name}/{mark[0]}", *mark[1:]) for mark in fingerprint(entry.path, depth - 1) or ()
                    ]
                elif entry.name.endswith(_EXTENSIONS):
                    found.append(_mark(entry))
    except OSError:
        return None
    return tuple(sorted(found))


def _mark(entry: "os.DirEntry[str]") -> tuple[str, int, int, int]:
    try:
        status = entry.stat()
    except OSError:
        return entry.name, 0, 0, 0
    return entry.name, status.st_ino, status.st_size, status.st_mtime_ns


def load(directory: Path, limit: int) -> Loaded:
    """Return the networks of a directory: those of the first `limit` files (0: of all).

    One bad file among these leaves no network: to use the next one instead would silently put pods on another
    network than the administrator ordered.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if _is_conf(entry))
    except FileNotFoundError:
        return Loaded(problem=f"{directory} does not exist")
    except OSError as error:
        return Loaded(problem=f"{directory} cannot be read: {error.strerror}")
    if not names:
        return Loaded(problem=f"no file *{', *'.join(_EXTENSIONS)} in {directory}")
    networks = []
    for name in names[: limit or None]:
        try:
            networks.append(read(directory / name))
        except InvalidArgument as error:
            return Loaded(files=tuple(names), problem=str(error))
    return Loaded(tuple(networks), tuple(names))


def _is_conf(entry: "os.DirEntry[str]") -> bool:
    return os.path.splitext(entry.name)[1] in _EXTENSIONS and not entry.is_dir(follow_symlinks=False)


def read(path: Path) -> Network:
    """Return the network of one file; InvalidArgument names the file, the place and the reason."""
    data = _read_object(path)
    try:
        network = _as_list(data) if path.suffix == ".conflist" else _from_single(data)
        if path.suffix == ".conflist" and not _flag(data, "loadOnlyInlinedPlugins"):
            folder = path.parent / network["name"]
            network["plugins"] = [*network["plugins"], *(_read_object(file) for file in sorted(folder.glob("*.conf")))]
        _check_plugins(network)
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from error
    return network


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    if not isinstance(data, dict):
        raise InvalidArgument(f"{path}: expected a JSON object")
    return data


def _from_single(data: dict[str, Any]) -> Network:
    if not data.get("type"):
        raise ValueError('no "type" (a list of plugins belongs into a file ending in .conflist)')
    head: dict[str, Any] = {key: data[key] for key in ("name", "cniVersion", "cniVersions") if key in data}
    return _as_list({**head, "plugins": [data]})


def _as_list(data: dict[str, Any]) -> Network:
    """Return a list with its name checked, its version chosen and its plugins a list of dicts."""
    network = {**data, "cniVersion": _choose_version(data)}
    if not isinstance(network.get("name"), str) or not _NAME.fullmatch(network["name"]):
        raise ValueError(f'"name" must be a word of letters, digits, ".", "_" and "-", not {network.get("name")!r}')
    plugins = network.setdefault("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(plugin, dict) for plugin in plugins):
        raise ValueError('"plugins" must be a list of objects')
    for key in ("disableCheck", "disableGC"):
        network[key] = _flag(data, key)
    return network


def _choose_version(data: dict[str, Any]) -> str:
    """Return the newest version among cniVersion and cniVersions that is spoken here (0.1.0 if none is named)."""
    named = data.get("cniVersions") or []
    if not isinstance(named, list):
        raise ValueError('"cniVersions" must be a list of version strings')
    named = [*named, *([data["cniVersion"]] if data.get("cniVersion") else [])]
    for text in named:
        if not isinstance(text, str) or not re.fullmatch(r"\d+\.\d+\.\d+", text):
            raise ValueError(f"{text!r} is not a CNI version like 1.0.0")
    usable = [text for text in named if version({"cniVersion": text}) <= NEWEST]
    if named and not usable:
        raise ValueError(f"cniVersion {named[-1]} is newer than {'.'.join(map(str, NEWEST))}, the newest spoken here")
    return max(usable, key=lambda text: version({"cniVersion": text}), default="0.1.0")


def _check_plugins(network: Network) -> None:
    if not network["plugins"]:
        raise ValueError("no plugins")
    for number, plugin in enumerate(network["plugins"], 1):
        kind = plugin.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ValueError(f'plugin {number}: "type" must be the file name of a plugin, not {kind!r}')
        if not isinstance(plugin.get("capabilities") or {}, dict):
            raise ValueError(f'plugin {number} ({kind}): "capabilities" must be an object')


def _flag(data: dict[str, Any], key: str) -> bool:
    """Return a boolean that libcni also takes as the strings "true" and "false"."""
    value = data.get(key, False)
    text = str(value).lower() if isinstance(value, bool | str) else ""
    if text not in ("true", "false"):
        raise ValueError(f'"{key}" must be true or false, not {value!r}')
    return text == "true"
