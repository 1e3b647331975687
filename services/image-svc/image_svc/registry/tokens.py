"""Bearer tokens (docs.docker.com/registry/spec/auth: token and oauth) and Basic, for one repository at one host."""

import threading
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx

from bulkhead.errors import PermissionDenied, Unauthenticated
from image_svc.registry import challenge
from image_svc.registry.credentials import Credentials
from image_svc.registry.failures import HostFailure, from_response

CLIENT_ID = "bulkhead"

#: Sends a request as it is and returns the answer with its body read.
Send = Callable[[httpx.Request], httpx.Response]


class Authorizer:
    """Keeps the Authorization header for one repository and gets a new one when the registry asks for it."""

    def __init__(self, origin: Callable[[], str], scope: str, credentials: Credentials, send: Send) -> None:
        self._origin = origin
        self._scope = scope
        self._credentials = credentials
        self._send = send
        self._lock = threading.Lock()
        token = credentials.registry_token
        self._value = f"Bearer {token}" if token else ""

    @property
    def value(self) -> str:
        """The header's value; empty while the registry has not asked for one."""
        return self._value

    def answer(self, response: httpx.Response, used: str, what: str) -> bool:
        """Take up the challenge of a 401; False if there is nothing (more) to answer with.

        `used` is the value that was refused: a value that another thread got meanwhile is worth a try first.
        """
        with self._lock:
            if self._value != used:
                return True
            if self._credentials.registry_token:
                return False
            found = challenge.parse(", ".join(response.headers.get_list("www-authenticate")))
            by_scheme = {each.scheme: each for each in found}
            if "bearer" in by_scheme and not self._refused_again(used, "Bearer", by_scheme["bearer"]):
                self._value = f"Bearer {self._token(by_scheme['bearer'], what)}"
            elif "basic" in by_scheme and self._credentials.username:
                self._value = self._credentials.basic
            return self._value != used

    def _refused_again(self, used: str, scheme: str, asked: challenge.Challenge) -> bool:
        """A fresh token refused for lack of scope will not get better by asking for the same once more."""
        return used.startswith(scheme) and asked.parameters.get("error") == "insufficient_scope"

    def _token(self, asked: challenge.Challenge, what: str) -> str:
        realm = asked.parameters.get("realm", "")
        where = self._realm_host(realm, what)
        response = self._send(self._request(realm, asked.parameters))
        if response.status_code != 200:
            raise from_response(response, f"{what}: token", where, self._credentials)
        try:
            body = response.json()
            token = body.get("token") or body.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise HostFailure(Unauthenticated(f"{what}: {where} answered 200 without a token"))
        return token

    def _realm_host(self, realm: str, what: str) -> str:
        """Check the address of the token service and return its origin, for messages."""
        try:
            parts = urlsplit(realm)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            sound = False
        if not sound:
            raise HostFailure(Unauthenticated(f"{what}: {self._origin()} asks for a token from {realm[:200]!r}"))
        if parts.scheme == "http" and self._origin().startswith("https:") and self._credentials:
            text = f"{what}: {self._origin()} asks for credentials to be sent unencrypted to {parts.netloc}"
            raise HostFailure(PermissionDenied(text))
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def _request(self, realm: str, parameters: dict[str, str]) -> httpx.Request:
        scope = parameters.get("scope") or self._scope
        service = parameters.get("service", "")
        if self._credentials.identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "client_id": CLIENT_ID,
                "service": service,
                "scope": scope,
            }
            return httpx.Request("POST", realm, data=form)
        query = [("service", service)] if service else []
        query += [("scope", part) for part in scope.split(" ") if part]
        url = httpx.URL(realm)
        url = url.copy_with(params=[*url.params.multi_items(), *query])
        headers = {"authorization": self._credentials.basic} if self._credentials.username else {}
        return httpx.Request("GET", url, headers=headers)
