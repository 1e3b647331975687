"""Which images a pattern of a credential provider means (kubelet credentialprovider v1, `matchImages`).

`[domain glob][:port][/path prefix]`: as many domain parts as the image's, each a glob of its own, the same port, and a
path that the image's path begins with.
"""

import fnmatch
import re
from dataclasses import dataclass

#: A domain with globs, or an address in brackets; a port; a path.
_PATTERN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^/:\s]+)(?::([0-9]+))?(/\S*)?")


@dataclass(frozen=True)
class Pattern:
    """A pattern, taken apart."""

    text: str
    parts: tuple[str, ...]
    port: str
    path: str

    def matches(self, image: str) -> bool:
        """Whether an image's name, without tag or digest, is meant."""
        try:
            other = parse(image)
        except ValueError:
            return False
        return (
            self.port == other.port
            and len(self.parts) == len(other.parts)
            and other.path.startswith(self.path)
            and all(
                # Go's negation in a class is "^".
                fnmatch.fnmatchcase(name, glob.replace("[^", "[!"))
                for name, glob in zip(other.parts, self.parts, strict=True)
            )
        )


def parse(text: str) -> Pattern:
    """Take a pattern or an image's name apart; ValueError says what is wrong with it."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:200]!r} is not a domain with an optional port and path")
    domain = match[1]
    return Pattern(
        text, (domain[1:-1],) if domain.startswith("[") else tuple(domain.split(".")), match[2] or "", match[3] or ""
    )
