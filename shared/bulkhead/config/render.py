"""The configuration as text: the built-in defaults as a file to start from, and the one in force with its origins."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bulkhead.config.load import Loaded
from bulkhead.config.model import Bulkhead, Config
from bulkhead.config.schema import PLUGINS_V3, TOP, Option, Table

_HIDDEN = ("images.registry.auths", "images.registry.headers")


def show(loaded: Loaded) -> Iterator[str]:
    """Yield `path = value  # origin` for every setting; credentials are never shown."""
    for path, value in _leaves(dataclasses.asdict(loaded.config), ()):
        name = ".".join(path)
        if name.startswith(_HIDDEN):
            value = "(hidden)"
        yield f"{name} = {_toml(value)}  # {loaded.origins.get(name, 'default')}"


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, tuple) and value and isinstance(value[0], dict):
        for item in value:
            yield from _leaves({k: v for k, v in item.items() if k != "id"}, (*path, item["id"]))
    else:
        yield path, value


def default_file() -> str:
    """Return a version 3 file that states every default; loading it equals loading none."""
    config = Config()
    lines = ["version = 3", 'root = "/var/lib/bulkhead"', 'state = "/run/bulkhead"', ""]
    for table in ("grpc", "debug"):
        node = TOP[table]
        assert isinstance(node, dict)
        lines += _section([table], node, config)
    for plugin, node in PLUGINS_V3.items():
        lines += _section(["plugins", json.dumps(plugin)], node, config)
    lines.append("[plugins.'io.containerd.cri.v1.images'.pinned_images]")
    lines += [f"{name} = {_toml(image)}" for name, image in config.images.pinned_images.items()]
    lines += ["", "[bulkhead]"]
    own = {field.name: getattr(config.bulkhead, field.name) for field in dataclasses.fields(Bulkhead)}
    lines += [f"{name} = {_toml(value)}" for name, value in own.items() if not isinstance(value, dict)]
    for name, value in own.items():
        if isinstance(value, dict):
            lines += ["", f"[bulkhead.{name}]"]
            lines += [f"{key} = {_toml(item)}" for key, item in value.items()]
    return "\n".join(lines) + "\n"


def _section(path: list[str], table: Table, config: Config) -> list[str]:
    """The options of one table that have a default of their own, then its sub-tables."""
    lines: list[str] = []
    for key, node in table.items():
        if isinstance(node, Option) and node.target and not node.deprecated:
            value: Any = config
            for part in node.target.split("."):
                value = getattr(value, part)
            if node.target == "images.registry.config_path":
                value = ":".join(value)
            elif node.kind == "duration":
                value = f"{value:g}s"
            elif node.kind == "seconds":
                value = int(value)
            lines.append(f"{key} = {_toml(value)}")
    head = [f"[{'.'.join(path)}]", *lines, ""] if lines else []
    for key, node in table.items():
        if isinstance(node, dict):
            head += _section([*path, key], node, config)
    return head


def _toml(value: Any) -> str:
    """Return a TOML value; JSON's strings, numbers, booleans and arrays are TOML's too."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
