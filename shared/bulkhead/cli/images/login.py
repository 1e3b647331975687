"""Who asks a registry: a user and a password from the options, standard input, a prompt, or an authentication file."""

import argparse
import getpass
import json
import sys
from pathlib import Path
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
    return _from_file(Path(options.authfile), registry_of(image)) if options.authfile else None


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


def _from_file(path: Path, registry: str) -> AuthConfig:
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgument(f"{path}: not JSON: {error}") from error
    entries = document.get("auths") if isinstance(document, dict) else None
    for address, entry in (entries if isinstance(entries, dict) else {}).items():
        if isinstance(entry, dict) and _same(address, registry):
            fields = ("username", "password", "auth")
            found = {name: str(entry[name]) for name in fields if entry.get(name)}
            return AuthConfig(**found, identity_token=str(entry.get("identitytoken", "")))
    raise NotFound(f"{path} has no credentials for {registry} in auths")


def _same(address: str, registry: str) -> bool:
    host = urlsplit(address if "://" in address else f"//{address}").netloc
    return host == registry or (host in _HUB and registry in _HUB)
