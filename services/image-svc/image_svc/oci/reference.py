"""Image references, read and completed as Docker and containerd do.

The grammar is that of github.com/distribution/reference: `[domain/]path[:tag][@digest]`. A first component without
a dot, a colon or a capital letter that is not "localhost" is a path on docker.io; a docker.io path of one component
lies below "library/"; a name without tag and digest means the tag "latest".

One difference: a first component with both a dot and an underscore ("my_host.example/app"), which can be no host, is
refused, where that package takes it for a path of no registry at all.
"""

import re
from dataclasses import dataclass

from bulkhead.errors import InvalidArgument
from image_svc.oci import digests

DEFAULT_DOMAIN = "docker.io"
#: distribution/reference, RepositoryNameTotalLengthMax.
PATH_LIMIT = 255

_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_COMPONENT}(?:\.{_COMPONENT})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True)
class Reference:
    """A complete image name: domain and path, with a tag or a digest."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def identifier(self) -> str:
        """What a registry is asked for below `manifests/`: the digest, else the tag."""
        return self.digest or self.tag

    def with_digest(self, digest: str) -> "Reference":
        """Return the same repository's content of that digest."""
        return Reference(self.domain, self.path, digest=digest)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """Return the complete form of a reference; InvalidArgument names the text and what is wrong with it.

    Where both a tag and a digest are given the digest counts and the tag is checked and dropped, as in
    distribution/reference's ParseDockerRef.
    """
    if not text:
        raise InvalidArgument("image reference is empty")
    if _IDENTIFIER.fullmatch(text):
        raise _bad(text, "64 hex digits are an image id, not a name")
    rest, at, digest = text.partition("@")
    if at:
        digests.check(digest, f"image reference {text!r}")
    domain, remainder = _split_domain(rest)
    path, colon, tag = remainder.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"tag {tag!r} is not 1 to 128 letters, digits, '_', '.' and '-'")
    _check_path(text, domain, path)
    if digest:
        return Reference(domain, path, digest=digest)
    return Reference(domain, path, tag=tag or "latest")


def parse_tagged(text: str) -> Reference:
    """Return a name that is to be given to an image: one with a digest, which cannot be given, is InvalidArgument."""
    parsed = parse(text)
    if parsed.digest:
        raise InvalidArgument(f"name {text!r} has a digest; expected a name with a tag or without")
    return parsed


def complete(text: str) -> str:
    """Return the complete form of a name as text, "" for what is no name."""
    try:
        return str(parse(text))
    except InvalidArgument:
        return ""


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, remainder = name.partition("/")
    named = "." in first or ":" in first or first == "localhost" or first.lower() != first
    if not slash or not named:
        first, remainder = DEFAULT_DOMAIN, name
    if first == "index.docker.io":
        first = DEFAULT_DOMAIN
    if first == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = f"library/{remainder}"
    return first, remainder


def _check_path(text: str, domain: str, path: str) -> None:
    if not _DOMAIN.fullmatch(domain):
        raise _bad(text, f"{domain!r} is not a host name with an optional port")
    if path.lower() != path:
        raise _bad(text, f"repository name {path!r} must be lower case")
    if not _PATH.fullmatch(path):
        raise _bad(text, f"{path!r} is not a repository name")
    if len(path) > PATH_LIMIT:
        raise _bad(text, f"repository name has {len(path)} characters, at most {PATH_LIMIT} are allowed")


def _bad(text: str, why: str) -> InvalidArgument:
    shown = text if len(text) <= 300 else f"{text[:300]}…"
    return InvalidArgument(f"image reference {shown!r}: {why}")
