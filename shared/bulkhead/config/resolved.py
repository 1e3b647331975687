"""The configuration as one service receives it: resolved, as JSON, without what is not that service's to know.

The administrator's file may hold registry passwords and be readable by root alone, while four of the services are
not root. The launcher (`bulkhead up`, or ExecStartPre=+ in the units) therefore writes each of them a copy of its
own; only image-svc's holds registry credentials.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from bulkhead.config.model import Config
from bulkhead.errors import InvalidArgument, NotFound, PermissionDenied

#: The one service that talks to registries.
SECRETS_FOR = "image-svc"


def is_resolved(path: str) -> bool:
    """Tell a resolved copy from an administrator's TOML: JSON opens with a brace, TOML never does."""
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"{"
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise PermissionDenied(f"{path}: {error.strerror}") from error


def resolved_for(service: str, config: Config) -> bytes:
    """Return the JSON copy of the configuration for one service."""
    if service != SECRETS_FOR:
        registry = dataclasses.replace(config.images.registry, auths={}, headers={})
        config = dataclasses.replace(config, images=dataclasses.replace(config.images, registry=registry))
    return json.dumps(dataclasses.asdict(config), default=str, indent=1).encode()


def read_resolved(path: str) -> Config:
    """Read a copy back; one that another version wrote is refused by name of the field."""
    try:
        data = json.loads(Path(path).read_bytes())
        made = _build(Config, data, "")
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not a resolved configuration: {error}") from error
    return typing.cast("Config", made)


def build(data: Any) -> Config:
    """Make a configuration from the parsed JSON of a copy; ValueError or TypeError if it is none."""
    made: Config = _build(Config, data, "")
    return made


def _build(kind: Any, value: Any, path: str) -> Any:
    """Make a value of an annotated type from JSON."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'document'} is not an object")
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"unknown field {path}{sorted(unknown)[0]}")
        return kind(**{name: _build(hints[name], item, f"{path}{name}.") for name, item in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(_build(arguments[0], item, path) for item in value)
    if origin is dict:
        return {name: _build(arguments[1], item, f"{path}{name}.") for name, item in value.items()}
    if kind is Path:
        return Path(value)
    if kind is float and isinstance(value, int):
        return float(value)
    if kind is not Any and not isinstance(kind, types.UnionType) and not isinstance(value, kind):
        raise ValueError(f"{path.rstrip('.')} is {value!r}, expected {kind.__name__}")
    return value
