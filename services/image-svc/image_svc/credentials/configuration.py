"""The kubelet's CredentialProviderConfig (k8s.io/kubelet/config/v1), read as strictly as the kubelet reads it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead.config.duration import parse_duration
from bulkhead.errors import FailedPrecondition
from image_svc.credentials.matching import Pattern, parse

KIND = "CredentialProviderConfig"
CONFIG_VERSIONS = tuple(f"kubelet.config.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
VERSIONS = tuple(f"credentialprovider.kubelet.k8s.io/{version}" for version in ("v1", "v1beta1", "v1alpha1"))
#: Bytes of a configuration file.
FILE_LIMIT = 1 << 20

_KEYS = frozenset({"name", "matchImages", "defaultCacheDuration", "apiVersion", "args", "env", "tokenAttributes"})


class ProviderConfigError(FailedPrecondition):
    """A configuration file that cannot be used; the message names file and line or field."""


@dataclass(frozen=True)
class Provider:
    """One program: what it is called, for which images, and how it is called."""

    name: str
    match_images: tuple[Pattern, ...]
    #: Seconds an answer without a duration of its own is good for.
    default_cache_duration: float
    api_version: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


def load(path: Path) -> tuple[Provider, ...]:
    """Read a file, YAML or JSON; ProviderConfigError if it is none."""
    import yaml  # 3 MB that a node without credential providers does not pay

    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ProviderConfigError(f"{path}: {error.strerror}") from error
    if len(data) > FILE_LIMIT:
        raise ProviderConfigError(f"{path}: more than the {FILE_LIMIT} bytes allowed")
    try:
        tree = yaml.load(data, Loader=yaml.SafeLoader)  # the safe one, and never the one in C, which crashes on depth
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ProviderConfigError(f"{path}:{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProviderConfigError(f"{path}: {type(error).__name__}: {str(error)[:200]}") from error
    try:
        return read(tree)
    except ValueError as error:
        raise ProviderConfigError(f"{path}: {error}") from error


def read(tree: object) -> tuple[Provider, ...]:
    """Return the providers of a parsed document; ValueError names the field and what was expected."""
    root = _table(tree, "document", ("apiVersion", "kind", "providers"))
    _one_of(root.get("apiVersion"), "apiVersion", CONFIG_VERSIONS)
    _one_of(root.get("kind"), "kind", (KIND,))
    entries = root.get("providers")
    if not isinstance(entries, list) or not entries:
        raise ValueError("providers: expected a list of at least one")
    providers = tuple(_provider(entry, f"providers[{number}]") for number, entry in enumerate(entries))
    names = [provider.name for provider in providers]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"providers[{number}].name: {name!r} stands twice")
    return providers


def _provider(entry: object, where: str) -> Provider:
    table = _table(entry, where, _KEYS)
    name = _text(table.get("name"), f"{where}.name")
    if not name or name in (".", "..") or "/" in name or " " in name or "\0" in name:
        raise ValueError(f"{where}.name: {name!r} is not the name of a program")
    if table.get("tokenAttributes") is not None:
        raise ValueError(f"{where}.tokenAttributes: service account tokens are the kubelet's to give; remove the field")
    return Provider(
        name,
        _patterns(table.get("matchImages"), f"{where}.matchImages"),
        duration(table.get("defaultCacheDuration"), f"{where}.defaultCacheDuration"),
        _one_of(table.get("apiVersion"), f"{where}.apiVersion", VERSIONS),
        tuple(_text(item, f"{where}.args[{n}]") for n, item in enumerate(_list(table.get("args"), f"{where}.args"))),
        tuple(_variable(item, f"{where}.env[{n}]") for n, item in enumerate(_list(table.get("env"), f"{where}.env"))),
    )


def _patterns(value: object, where: str) -> tuple[Pattern, ...]:
    texts = [_text(item, f"{where}[{n}]") for n, item in enumerate(_list(value, where))]
    if not texts:
        raise ValueError(f"{where}: expected at least one pattern")
    try:
        return tuple(map(parse, texts))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _variable(value: object, where: str) -> tuple[str, str]:
    table = _table(value, where, ("name", "value"))
    name = _text(table.get("name"), f"{where}.name")
    if not name or "=" in name:
        raise ValueError(f"{where}.name: {name!r} is not the name of a variable")
    return name, _text(table.get("value", ""), f"{where}.value", secret=True)


def duration(value: object, where: str) -> float:
    """Return the seconds of a Go duration, 0 or more."""
    try:
        seconds = parse_duration(value) if isinstance(value, str) else -1.0
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        raise ValueError(f'{where}: {str(value)[:100]!r} is not a duration such as "12h"')
    return seconds


def _table(value: object, where: str, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a mapping")
    for key in value:
        if key not in known:
            raise ValueError(f"{where}: unknown field {str(key)[:80]!r}, expected one of {', '.join(sorted(known))}")
    return value


def _list(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list")
    return value


def _text(value: object, where: str, *, secret: bool = False) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{where}: {'(hidden)' if secret else str(value)[:80]!r} is not a string")
    return value


def _one_of(value: object, where: str, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{where} is {str(value)[:80]!r}, expected {' or '.join(allowed)}")
    return value
