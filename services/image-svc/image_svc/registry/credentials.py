"""Who asks: the credentials of one pull, and which hosts may see them."""

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bulkhead.config.model import Registry
from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.registry.hosts import Host

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or one of the two kinds of token; all empty for nobody."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    #: An OAuth2 refresh token.
    identity_token: str = field(default="", repr=False)
    #: A bearer token to be sent as it is.
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    @property
    def basic(self) -> str:
        """The value of an Authorization header of scheme Basic (RFC 7617, UTF-8)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()

    def redact(self, text: str) -> str:
        """Return a text of somebody else's making with every secret of ours blotted out."""
        secrets = {self.password, self.identity_token, self.registry_token, self.basic.removeprefix("Basic ")}
        for secret in secrets - {""}:
            text = text.replace(secret, "***")
        return text


def for_host(host: Host, auth: AuthConfig | None, registry: Registry) -> Credentials:
    """Return what may be shown to a host: the request's credentials, else the configuration's, else none.

    Credentials that name a server go to that server alone; those that name none belong to the image's registry
    and go to it and to the mirrors that the administrator set up for it, as under containerd.
    """
    if auth is not None and (auth.username or auth.auth or auth.identity_token or auth.registry_token):
        wanted = auth.server_address
        if wanted and not _same(wanted, host):
            return Credentials()
        return _credentials(
            auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token, "auth of the request"
        )
    for name, entry in registry.auths.items():
        if _same(name, host):
            where = f"registry.configs.{name!r}.auth"
            return _credentials(entry.username, entry.password, entry.auth, entry.identitytoken, "", where)
    return Credentials()


def _credentials(username: str, password: str, auth: str, identity: str, token: str, where: str) -> Credentials:
    if not username and auth:
        try:
            decoded = base64.b64decode(auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidArgument(f"{where}: field auth is not base64 of user:password") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidArgument(f"{where}: field auth is not base64 of user:password")
        password = password.strip("\0")
    if identity:
        return Credentials(identity_token=identity)
    if token:
        return Credentials(registry_token=token)
    return Credentials(username=username, password=password)


def _same(address: str, host: Host) -> bool:
    """Whether an address as users write it ("https://index.docker.io/v1/", "host:5000") means that host."""
    try:
        named = urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2].lower()
    except ValueError:
        return False
    if named in _DOCKER_HUB:
        return host.host in _DOCKER_HUB
    return named in (host.host.lower(), f"{host.host.lower()}:{443 if host.scheme == 'https' else 80}")
