"""What an image says about the containers made from it: the "config" of its configuration document, checked.

The document comes from a registry, so nothing in it is believed to have the right type.
"""

from dataclasses import dataclass
from typing import Any

from bulkhead.errors import InvalidArgument
from sandbox_svc.oci.model import Json


@dataclass(frozen=True)
class ImageConfig:
    """What a container takes over of an image's config (image-spec, config.md); empty where the image is silent."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()


def image_config(document: Json) -> ImageConfig:
    """Return what a configuration document says; InvalidArgument names the member that has the wrong type."""
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise InvalidArgument("the image's config: want an object")
    volumes = config.get("Volumes") or {}
    if not isinstance(volumes, dict):
        raise InvalidArgument("the image's Volumes: want an object")
    return ImageConfig(
        entrypoint=_texts(config, "Entrypoint"),
        cmd=_texts(config, "Cmd"),
        env=_texts(config, "Env"),
        working_dir=_text(config.get("WorkingDir") or "", "WorkingDir"),
        user=_text(config.get("User") or "", "User"),
        volumes=tuple(sorted(_text(path, "Volumes") for path in volumes)),
    )


def _texts(config: Json, member: str) -> tuple[str, ...]:
    values = config.get(member) or ()
    if not isinstance(values, list | tuple):
        raise InvalidArgument(f"the image's {member}: want a list of strings")
    return tuple(_text(value, member) for value in values)


def _text(value: Any, member: str) -> str:
    """Return a string that a process can be given: UTF-8 without NUL."""
    if not isinstance(value, str):
        raise InvalidArgument(f"the image's {member}: want a string, got {value!r}")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidArgument(f"the image's {member}: {value!r} cannot be passed to a process")
    return value
