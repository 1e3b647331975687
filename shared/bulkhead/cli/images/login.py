"""Who asks a registry: a user and a password from the options, standard input, a prompt, or an authentication file."""

import argparse
import getpass
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig

_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
#: Bytes of a password or a token.
_PASSWORD_LIMIT = 64 * 1024


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("credentials (without them the configuration's are used)")
    group.add_argument(
        "-u", "--user", metavar="USER[:PASSWORD]", help="a password given here can be seen by every user of the machine"
    )
    group.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    group.add_argument("--authfile", metavar="FILE", help="take them from a file as docker and podman login write it")


def credentials(options: argparse.Namespace, image: str) -> AuthConfig | None:
    """Return the credentials to send, or None to leave that to the configuration."""
    if options.password_stdin and not options.user:
        raise InvalidArgument("--password-stdin needs --user")
    if options.user:
        if options.authfile:
            raise InvalidArgument("--user and --authfile exclude each other")
        return AuthConfig(**_typed(options))
    return _from_file(Path(options.authfile), image) if options.authfile else None


def registry_of(image: str) -> str:
    """Return the registry that a name begins with, docker.io where it names none."""
    first, slash, _ = image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    return first if named else "docker.io"


def _typed(options: argparse.Namespace) -> dict[str, str]:
    user, colon, password = options.user.partition(":")
    if not user:
        raise InvalidArgument("--user is empty; expected USER or USER:PASSWORD")
    if options.password_stdin:
        if colon:
            raise InvalidArgument("--user has a password and --password-stdin asks for another")
        password = sys.stdin.read(_PASSWORD_LIMIT).rstrip("\r\n")
        if not password:
            raise InvalidArgument("--password-stdin: standard input held no password")
    elif not colon:
        if not sys.stdin.isatty():
            raise InvalidArgument("--user without a password: add --password-stdin, or type it on a terminal")
        password = getpass.getpass(f"password of {user}: ")
    return {"username": user, "password": password}


def _from_file(path: Path, image: str) -> AuthConfig:
    """Return the credentials of an image's registry, of the entry that says most of the image where there are several.

    Docker names registries, Podman parts of their repositories as well (containers-auth.json(5)).
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: not JSON: {error}") from error
    document = document if isinstance(document, dict) else {}
    registry, repository = registry_of(image), _repository_of(image)
    entries = document.get("auths")
    best, chosen = -1, AuthConfig()
    for address, entry in (entries if isinstance(entries, dict) else {}).items():
        fits = _fits(address, registry, repository)
        if fits > best and (found := _auth(entry)) != AuthConfig():
            best, chosen = fits, found
    if best < 0:
        raise NotFound(f"{path} has no credentials for {registry} in auths{_elsewhere(document)}")
    return chosen


def _auth(entry: object) -> AuthConfig:
    """Return what an entry holds, which is nothing where a helper keeps the credentials."""
    if not isinstance(entry, dict):
        return AuthConfig()
    found = {name: str(entry[name]) for name in ("username", "password", "auth") if entry.get(name)}
    return AuthConfig(**found, identity_token=str(entry.get("identitytoken") or ""))


def _elsewhere(document: dict[str, Any]) -> str:
    helper = document.get("credsStore") or document.get("credHelpers")
    return "; credential helpers, which it names, are not asked" if helper else ""


def _repository_of(image: str) -> str:
    """Return the path of a name below its registry, without tag and digest."""
    first, slash, rest = image.partition("/")
    named = slash and first == registry_of(image)
    path = (rest if named else image).partition("@")[0]
    head, slash, last = path.rpartition("/")
    path = f"{head}{slash}{last.partition(':')[0]}"
    return f"library/{path}" if "/" not in path and registry_of(image) in _HUB else path


def _fits(address: str, registry: str, repository: str) -> int:
    """Return how many characters of a repository an address says that is one of its own; -1 for another's."""
    # With a scheme it is the address of an API, "/v1/" included, and of the registry as a whole.
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
    except ValueError:
        return -1
    path = "" if parts.scheme else parts.path.strip("/")
    same = parts.netloc == registry or (parts.netloc in _HUB and registry in _HUB)
    return len(path) if same and f"{repository}/".startswith(f"{path}/" if path else "") else -1
