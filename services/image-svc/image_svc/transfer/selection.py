"""Which platforms of an image somebody means."""

from collections.abc import Sequence
from dataclasses import dataclass

from bulkhead.errors import InvalidArgument
from image_svc.oci import platforms
from image_svc.oci.platforms import Platform

_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd"})


@dataclass(frozen=True)
class Selection:
    """All platforms, or those named; neither means the machine's own."""

    all: bool = False
    platforms: tuple[Platform, ...] = ()

    @property
    def default(self) -> bool:
        """Whether nobody asked for anything in particular."""
        return not (self.all or self.platforms)


def selection(names: Sequence[str], host: Platform, *, all_platforms: bool) -> Selection:
    """Return what a request selects; InvalidArgument for what is no platform, or for both at once."""
    if all_platforms and names:
        raise InvalidArgument("all platforms and some by name were asked for at once")
    return Selection(all_platforms, tuple(parse(name, host) for name in names))


def parse(text: str, host: Platform) -> Platform:
    """Return the platform that somebody wrote: `os/architecture[/variant]`, or one of the two alone.

    InvalidArgument names the text and what was expected.
    """
    parts = text.strip().lower().split("/")
    if len(parts) > 3 or not all(_is_word(part) for part in parts):
        raise InvalidArgument(f"platform {text[:100]!r}: expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64")
    if len(parts) == 1 and parts[0] in _SYSTEMS:
        return Platform(parts[0], host.architecture)
    if len(parts) == 1:
        parts = [host.os, parts[0]]
    made = platforms.normalize(*parts)
    # Normalising takes an arm without its variant for v7; who leaves it out here means any.
    return made if len(parts) == 3 else Platform(made.os, made.architecture)


def _is_word(part: str) -> bool:
    return 0 < len(part) <= 32 and part.isascii() and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
