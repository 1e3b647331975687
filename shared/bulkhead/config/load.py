"""From files to one Config: read, merge, fill in defaults, and check what only the whole can show."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bulkhead.config import model
from bulkhead.config.document import KeyPath, read_with_imports
from bulkhead.config.flatten import flatten, merge
from bulkhead.config.resolved import is_resolved, read_resolved
from bulkhead.config.unhonoured import UNHONOURED
from bulkhead.errors import InvalidArgument

DEFAULT_PATH = "/etc/bulkhead/config.toml"
DEFAULT_ROOT, DEFAULT_STATE = "/var/lib/bulkhead", "/run/bulkhead"
#: All that Bulkhead writes stands below a directory of this name, so that a shared root holds both runtimes' data.
SUBDIRECTORY = "io.bulkhead"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Loaded:
    """A configuration, where each of its values came from, and what its author should know."""

    config: model.Config
    #: Model path ("runtime.cni.conf_dir") to "file:line"; a value that is not here is a default.
    origins: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def load(path: str | None = None) -> model.Config:
    """Return the configuration of that file, of /etc/bulkhead/config.toml, or the built-in one.

    InvalidArgument names file, line and key of what is wrong; NotFound a file that is not there.
    """
    return examine(path).config


def examine(path: str | None = None) -> Loaded:
    """Like load, with the origin of every value and the warnings."""
    if not path:
        path = DEFAULT_PATH if os.path.exists(DEFAULT_PATH) else ""
    if path and is_resolved(path):
        return Loaded(read_resolved(path))
    flats = [flatten(document) for document in read_with_imports(path)] if path else []
    values: dict[KeyPath, Any] = {}
    origins: dict[str, str] = {}
    for target, found in merge(flats):
        values[target] = found.value
        origins[".".join(target)] = found.origin
    warnings = [line for flat in flats for line in flat.warnings]
    warnings += [
        f"{origins[name]}: {name} is known and not yet honoured" for name in sorted(origins) if _unhonoured(name)
    ]
    config = _assemble(values, path)
    _check_whole(config, origins)
    rules, required = config.nri.default_validator, "nri.default_validator.required_plugins"
    if required in origins and rules.required_plugins and not rules.enable:
        warnings.append(f"{origins[required]}: {required} has no effect without default_validator.enable = true")
    return Loaded(config, origins, warnings)


def _unhonoured(name: str) -> bool:
    parts = name.split(".")
    return any(
        len(parts) == len(pattern) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=True))
        for pattern in (item.split(".") for item in UNHONOURED)
    )


def _assemble(values: dict[KeyPath, Any], path: str) -> model.Config:
    tree: dict[str, Any] = {}
    for target, value in sorted(values.items(), key=lambda item: len(item[0])):
        node = tree
        for part in target[:-1]:
            node = node.setdefault(part, {})
        node[target[-1]] = value
    root, state = tree.pop("root", DEFAULT_ROOT), tree.pop("state", DEFAULT_STATE)
    processors = tuple(
        dataclasses.replace(model.StreamProcessor(id=name), **content)
        for name, content in tree.pop("stream_processors", {}).items()
    )
    proxies = {name: model.ProxyPlugin(**content) for name, content in tree.pop("proxy_plugins", {}).items()}
    runtimes = tree.setdefault("runtime", {}).pop("runtimes", {})
    runtimes.setdefault("runc", {})
    if "default" in runtimes and "default_runtime_name" not in tree["runtime"]:
        tree["runtime"]["default_runtime_name"] = "default"  # the deprecated default_runtime table
    registry = tree.setdefault("images", {}).setdefault("registry", {})
    registry["auths"] = {host: model.RegistryAuth(**auth) for host, auth in registry.get("auths", {}).items()}
    registry["tls"] = {host: model.RegistryTls(**tls) for host, tls in registry.get("tls", {}).items()}
    if "config_path" in registry and not registry["config_path"]:
        del registry["config_path"]
    if registry.get("mirrors") and "config_path" not in registry:
        registry["config_path"] = ()  # as containerd: mirrors count only where no config_path is set
    config = _fill(model.Config(), tree)
    platforms = config.images.runtime_platforms
    handlers = {
        name: _fill(
            model.RuntimeHandler(name=name, snapshotter=platforms.get(name, "")),
            {k: v for k, v in content.items() if v != ""},
        )
        for name, content in runtimes.items()
    }
    return dataclasses.replace(
        config,
        path=path,
        root=Path(root) / SUBDIRECTORY,
        state=Path(state) / SUBDIRECTORY,
        stream_processors=processors,
        proxy_plugins=proxies,
        runtime=dataclasses.replace(config.runtime, runtimes=handlers),
    )


def _fill(base: _T, tree: dict[str, Any]) -> _T:
    """Replace the fields of a dataclass, and of those inside it, by what the tree holds."""
    changes: dict[str, Any] = {}
    for key, value in tree.items():
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and isinstance(value, dict):
            changes[key] = _fill(current, value)
        elif isinstance(current, dict) and isinstance(value, dict):
            changes[key] = {**current, **value}
        elif value == "" and key in ("level", "format", "ip_pref", "stream_server_port", "stream_server_address"):
            continue  # containerd's empty string means the default there
        else:
            changes[key] = value
    return dataclasses.replace(base, **changes)  # type: ignore[type-var] # every caller passes a dataclass


def _check_whole(config: model.Config, origins: dict[str, str]) -> None:
    """What no single key shows: names that must exist, values that need each other."""
    name = config.runtime.default_runtime_name
    if name not in config.runtime.runtimes:
        known = ", ".join(sorted(config.runtime.runtimes))
        where = origins.get("runtime.default_runtime_name", "built-in default")
        raise InvalidArgument(f"{where}: default_runtime_name is {name!r}, expected one of the runtimes: {known}")
    streaming = config.streaming
    if bool(streaming.tls_cert_file) != bool(streaming.tls_key_file):
        where = origins.get("streaming.tls_cert_file") or origins.get("streaming.tls_key_file", "")
        raise InvalidArgument(f"{where}: tls_cert_file and tls_key_file must both be set, or neither")
    if config.images.registry.mirrors and config.images.registry.config_path:
        where = origins["images.registry.config_path"]
        raise InvalidArgument(f"{where}: registry.config_path and registry.mirrors exclude each other")
    for name, plugin in config.proxy_plugins.items():
        if plugin.snapshotter and (not plugin.address or name in ("overlayfs", "native")):
            where = origins.get(f"proxy_plugins.{name}.type", "")
            wrong = "has no address" if not plugin.address else "has the name of a built-in snapshotter"
            raise InvalidArgument(f"{where}: proxy_plugins.{name} {wrong}")
    ports = [port for port in config.bulkhead.metrics_ports.values() if port > 0]
    if len(set(ports)) != len(ports):
        raise InvalidArgument("bulkhead.metrics_ports: two services have the same port")
