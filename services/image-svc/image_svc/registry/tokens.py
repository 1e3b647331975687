"""Bearer tokens (distribution's spec/auth: token and oauth) and Basic, for one repository at one host."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx

from bulkhead.errors import PermissionDenied, Unauthenticated
from image_svc.registry import challenge
from image_svc.registry.challenge import Challenge
from image_svc.registry.credentials import Account, Credentials
from image_svc.registry.failures import HostFailure, from_response, from_transport
from image_svc.registry.scopes import Scopes

CLIENT_ID = "bulkhead"
#: Seconds before its end that a token is replaced, at most a tenth of its life.
_EARLY = 10.0
#: Seconds beyond which a token's life is as good as endless.
_ENDLESS = 365 * 86400
#: What token services answer to POST that know only GET (containerd's list), and the other way round.
_NO_POST, _NO_GET = frozenset({400, 401, 404, 405}), frozenset({404, 405})

#: Sends a request as it is and returns the answer with its body read.
Send = Callable[[httpx.Request], httpx.Response]


class Authorizer:
    """Keeps the Authorization header for one repository and gets a new one when the registry asks for it."""

    def __init__(self, origin: Callable[[], str], scope: str, account: Account, send: Send) -> None:
        self._origin = origin
        self._scopes = Scopes(scope)
        self._account = account
        self._send = send
        self._lock = threading.Lock()
        token = account.known.registry_token
        self._value = f"Bearer {token}" if token else ""
        #: The challenge that the token in use answers, the scopes it was asked for, and when it ends (monotonic).
        self._answered: Challenge | None = None
        self._granted: tuple[str, ...] = ()
        self._ends = float("inf")
        #: A refresh token that a token service gave in exchange for ours.
        self._refresh = ""

    def value(self, what: str) -> str:
        """Return the header's value, renewed if its time is over; empty while the registry has not asked for one."""
        with self._lock:
            if self._answered is not None and time.monotonic() >= self._ends:
                self._renew(self._answered, what)
            return self._value

    @contextmanager
    def also(self, scope: str) -> Iterator[None]:
        """Have tokens be good for something more during the block.

        Not beyond it: a token service may refuse all of a wish for the sake of one part.
        """
        with self._lock:
            self._scopes.add(scope)
            self._outdate()
        try:
            yield
        finally:
            with self._lock:
                self._scopes.remove(scope)
                self._outdate()

    def _outdate(self) -> None:
        if self._answered is not None and self._granted != self._scopes.wanted():
            self._ends = 0.0

    def answer(self, response: httpx.Response, used: str, what: str) -> bool:
        """Take up the challenge of a 401; False if there is nothing (more) to answer with.

        `used` is the value that was refused: a value that another thread got meanwhile is worth a try first.
        """
        with self._lock:
            if self._value != used:
                return True
            while True:
                refusal: HostFailure | None = None
                try:
                    if self._take_up(response, used, what):
                        return True
                except HostFailure as failure:
                    if not isinstance(failure.error, Unauthenticated | PermissionDenied):
                        raise
                    refusal = failure
                if not self._account.another():
                    if refusal is not None:
                        raise refusal
                    return False
                self._granted, self._refresh = (), ""

    def _take_up(self, response: httpx.Response, used: str, what: str) -> bool:
        """Answer a challenge with the credentials in use; False if they have nothing (more) to say."""
        credentials = self._account.demand()
        if credentials.registry_token:
            self._value = f"Bearer {credentials.registry_token}"
            return self._value != used
        found = challenge.parse(", ".join(response.headers.get_list("www-authenticate")))
        bearer = next((each for each in found if each.scheme == "bearer"), None)
        basic = any(each.scheme == "basic" for each in found) and bool(credentials.username)
        try:
            if bearer is not None and self._is_new(bearer, used):
                self._renew(bearer, what)
                return self._value != used
        except HostFailure:
            if not basic:
                raise
        if basic:
            self._value, self._answered = credentials.basic, None
        return self._value != used

    def _is_new(self, asked: Challenge, used: str) -> bool:
        """Whether a token could help: one refused for lack of scope is not bettered by asking for the same again."""
        self._scopes.add(asked.parameters.get("scope", ""))
        lacking = used.startswith("Bearer") and asked.parameters.get("error") == "insufficient_scope"
        return not lacking or self._scopes.wanted() != self._granted

    def _renew(self, asked: Challenge, what: str) -> None:
        """Get a token for a challenge and use it from now on."""
        scopes = self._scopes.wanted()
        began = time.monotonic()
        token, life = self._token(asked, scopes, what)
        self._value, self._answered, self._granted = f"Bearer {token}", asked, scopes
        self._ends = began + life - min(_EARLY, life / 10)

    def _token(self, asked: Challenge, scopes: tuple[str, ...], what: str) -> tuple[str, float]:
        """Return a token and the seconds it is good for."""
        realm, service = asked.parameters.get("realm", ""), asked.parameters.get("service", "")
        credentials = self._account.demand()
        where = self._realm_host(realm, credentials, what)
        what = f"{what}: token"
        get, post = (make(realm, service, scopes, credentials) for make in (self._get, self._post))
        if credentials.identity_token:
            first, second, other_way = post, get, _NO_POST
        else:
            first, second, other_way = get, post, _NO_GET if credentials.username else frozenset()
        response = self._ask(first, what, where)
        if response.status_code in other_way:
            again = self._ask(second, what, where)
            response = again if again.status_code == 200 else response
        if response.status_code != 200:
            raise from_response(response, what, where, self._account)
        return self._read(response, what, where)

    def _ask(self, request: httpx.Request, what: str, where: str) -> httpx.Response:
        try:
            return self._send(request)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise from_transport(error, what, where) from error

    def _read(self, response: httpx.Response, what: str, where: str) -> tuple[str, float]:
        try:
            body = response.json()
            token = body.get("token") or body.get("access_token")
            life, refresh = body.get("expires_in"), body.get("refresh_token")
        except (ValueError, AttributeError, RecursionError):
            token = life = refresh = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise HostFailure(Unauthenticated(f"{what}: {where} answered 200 without a token"))
        self._account.issued(token, refresh if isinstance(refresh, str) else "")
        if isinstance(refresh, str) and self._account.known.identity_token:
            self._refresh = refresh
        sound = isinstance(life, int | float) and not isinstance(life, bool) and 0 < life < _ENDLESS
        return token, float(life) if sound else float("inf")

    def _realm_host(self, realm: str, credentials: Credentials, what: str) -> str:
        """Check the address of the token service and return its origin, for messages."""
        try:
            parts = urlsplit(realm)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            sound = False
        if not sound:
            raise HostFailure(Unauthenticated(f"{what}: {self._origin()} asks for a token from {realm[:200]!r}"))
        if parts.scheme == "http" and self._origin().startswith("https:") and credentials:
            text = f"{what}: {self._origin()} asks for credentials to be sent unencrypted to {parts.netloc}"
            raise HostFailure(PermissionDenied(text))
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def _get(self, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials) -> httpx.Request:
        """Return a request as spec/auth/token has it, a parameter a scope."""
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        if credentials.identity_token:
            credentials = Credentials(password=self._refresh or credentials.identity_token)
        headers = {"authorization": credentials.basic} if credentials else {}
        return _request("GET", realm, query, headers)

    def _post(self, realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials) -> httpx.Request:
        """Return a request as spec/auth/oauth has it, the scopes with blanks between them."""
        form = {"client_id": CLIENT_ID, "service": service, "scope": " ".join(scopes)}
        if credentials.identity_token:
            form |= {"grant_type": "refresh_token", "refresh_token": self._refresh or credentials.identity_token}
        else:
            form |= {"grant_type": "password", "username": credentials.username, "password": credentials.password}
        return httpx.Request("POST", realm, data=form)


def _request(method: str, realm: str, query: list[tuple[str, str]], headers: dict[str, str]) -> httpx.Request:
    url = httpx.URL(realm)
    return httpx.Request(method, url.copy_with(params=[*url.params.multi_items(), *query]), headers=headers)
