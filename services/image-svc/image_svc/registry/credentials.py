"""Who asks: the credentials of one pull or push, which hosts may see them, and where they come from."""

import base64
import binascii
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bulkhead.config.model import Registry
from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.credentials import ProviderError, Providers
from image_svc.registry.hosts import Host

_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
NOBODY = "anonymous"


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
        secrets = {self.password, self.identity_token, self.registry_token}
        if self:
            secrets.add(self.basic.removeprefix("Basic "))
        for secret in sorted(secrets - {""}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


class Account:
    """What one host may be shown, found out at the latest when it asks who is there."""

    def __init__(
        self,
        credentials: Credentials | None = None,
        source: str = NOBODY,
        ask: Callable[[], list[tuple[Credentials, str]]] | None = None,
    ) -> None:
        self._known = credentials or Credentials()
        #: What a provider gave beside it, to be tried in turn, and what was tried in vain.
        self._others: list[tuple[Credentials, str]] = []
        self._spent: list[Credentials] = []
        self._ask = ask
        self._lock = threading.Lock()
        #: Where the credentials come from, for people; never what they are.
        self.source = source
        #: Tokens that were given in exchange, the last few.
        self._issued: tuple[str, ...] = ()
        #: Why there are none although a credential provider is configured for the host; else empty.
        self.problem = ""

    @property
    def known(self) -> Credentials:
        """What is known without asking anybody."""
        return self._known

    def issued(self, *tokens: str) -> None:
        """Note tokens that a token service gave for the credentials: they are secrets like those."""
        self._issued = (*self._issued, *tokens)[-8:]

    def redact(self, text: str) -> str:
        """Return a text of somebody else's making with every secret of ours blotted out."""
        for token in self._issued:
            text = text.replace(token, "***") if token else text
        for credentials in (*self._spent, self._known):
            text = credentials.redact(text)
        return text

    def another(self) -> bool:
        """Go over to the next credentials that a provider gave, since these were refused; False if there are none."""
        with self._lock:
            if not self._others:
                return False
            self._spent.append(self._known)
            self._known, self.source = self._others.pop(0)
            return True

    def demand(self) -> Credentials:
        """Return the credentials, asking a credential provider the first time.

        One that fails is no end yet: the host may let anybody in. `problem` then says what happened.
        """
        with self._lock:
            ask, self._ask = self._ask, None
            if ask is not None:
                try:
                    found = ask()
                except ProviderError as error:
                    self.problem = str(error)
                else:
                    self._others = found[1:]
                    if found:
                        self._known, self.source = found[0]
            return self._known


def for_host(
    host: Host,
    auth: AuthConfig | None,
    registry: Registry,
    providers: Providers | None = None,
    image: str = "",
) -> Account:
    """Return what may be shown to a host: the request's credentials, else the configuration's, else a provider's.

    Credentials that name a server go to that server alone; those that name none belong to the image's registry
    and go to it and to the mirrors that the administrator set up for it, as under containerd. A provider is asked about
    `image`, the repository under the name of the host itself, so that its answer belongs to that host.
    """
    if auth is not None and (auth.username or auth.auth or auth.identity_token or auth.registry_token):
        wanted = auth.server_address
        if wanted and not _same(wanted, host):
            return Account(source=f"{NOBODY}: the request's credentials are for {wanted[:200]}")
        where = "auth of the request"
        found = _credentials(auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token, where)
        return Account(found, where)
    for name, entry in registry.auths.items():
        if _same(name, host):
            where = f"registry.configs.{name!r}.auth"
            found = _credentials(entry.username, entry.password, entry.auth, entry.identitytoken, "", where)
            return Account(found, where)
    names = providers.matching(image) if providers else []
    if providers is None or not names:
        return Account()
    return Account(source=f"credential provider {', '.join(names)}", ask=lambda: _provided(providers, image))


def _provided(providers: Providers, image: str) -> list[tuple[Credentials, str]]:
    return [
        (Credentials(username=found.username, password=found.password), f"credential provider {found.provider}")
        for found in providers.find(image)
    ]


def _credentials(username: str, password: str, auth: str, identity: str, token: str, where: str) -> Credentials:
    if not username and auth:
        try:
            # As Go's decoder, which passes over line ends.
            decoded = base64.b64decode(auth.replace("\n", "").replace("\r", ""), validate=True).decode()
        except (binascii.Error, UnicodeError, ValueError):
            raise InvalidArgument(f"{where}: field auth is not base64 of user:password") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidArgument(f"{where}: field auth is not base64 of user:password")
        password = password.strip("\0")
    if identity:
        return Credentials(identity_token=_header(identity, "identity_token", where))
    if token:
        return Credentials(registry_token=_header(token, "registry_token", where))
    return Credentials(username=username, password=password)


def _header(token: str, field_name: str, where: str) -> str:
    """Return a token that may stand in a header; InvalidArgument, which does not show it, for any other."""
    token = token.strip(" \t\r\n")  # a file's line end, as a rule
    if not token.isascii() or not token.isprintable():
        raise InvalidArgument(f"{where}: field {field_name} holds characters that no token has")
    return token


def _same(address: str, host: Host) -> bool:
    """Whether an address as users write it ("https://index.docker.io/v1/", "host:5000") means that host."""
    try:
        named = urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2].lower()
    except ValueError:
        return False
    if named in _DOCKER_HUB:
        return host.host in _DOCKER_HUB
    return named in (host.host.lower(), f"{host.host.lower()}:{443 if host.scheme == 'https' else 80}")
