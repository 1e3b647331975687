"""Tokens: for the right scopes, by the way that the service knows, and renewed before they end."""

import base64
import json
import logging
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import command
from bulkhead.command import Result
from bulkhead.config.model import Config, Images, Registry, RegistryAuth
from bulkhead.errors import BulkheadError, InvalidArgument, Unauthenticated
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.credentials import Providers
from image_svc.oci import digests, reference
from image_svc.patience import Patience
from image_svc.registry import credentials
from image_svc.registry.challenge import Challenge
from image_svc.registry.credentials import Account, Credentials
from image_svc.registry.endpoint import Endpoint
from image_svc.registry.failures import HostFailure
from image_svc.registry.hosts import Host
from image_svc.registry.repository import Descriptor, Repository, Retry
from image_svc.registry.scopes import Scopes
from image_svc.registry.tokens import Authorizer
from support.fake_registry import FakeRegistry, Handler, Rule, fake_registry

SECRET = "s3cret-w0rd"
REALM = "https://auth.example/token"


class Service:
    """Stands in for a token service: answers in turn and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        status, body = self.answers.pop(0)
        return httpx.Response(status, content=body if isinstance(body, bytes) else json.dumps(body).encode())

    def scopes(self, number: int = -1) -> list[str]:
        """Return the scopes of a request by GET."""
        return [value for key, value in self.asked[number].url.params.multi_items() if key == "scope"]

    def form(self, number: int = -1) -> dict[str, str]:
        """Return the form of a request by POST."""
        return dict(urllib.parse.parse_qsl(self.asked[number].read().decode()))


def authorizer(service: Service, found: Credentials | None = None, actions: str = "pull") -> Authorizer:
    """Return an authorizer for app at an https registry."""
    return Authorizer(lambda: "https://r.example", f"repository:app:{actions}", Account(found), service)


def refusal(challenge: str) -> httpx.Response:
    """Return a 401."""
    return httpx.Response(401, headers={"www-authenticate": challenge})


def bearer(**parameters: str) -> str:
    """Return a bearer challenge."""
    return "Bearer " + ",".join(f'{key}="{value}"' for key, value in {"realm": REALM, **parameters}.items())


@pytest.mark.parametrize(
    ("own", "asked", "wanted"),
    [
        ("repository:app:pull", "", ("repository:app:pull",)),
        ("repository:app:pull", "repository:app:pull", ("repository:app:pull",)),
        ("repository:app:pull,push", "repository:app:pull", ("repository:app:pull,push",)),
        ("repository:app:pull", "repository:cache/app:pull", ("repository:cache/app:pull",)),
        (
            "repository:app:pull",
            "repository:app:pull registry:catalog:*",
            ("repository:app:pull", "registry:catalog:*"),
        ),
        ("repository:app:pull", "aws", ("aws", "repository:app:pull")),
        ("repository:app:pull", "repository(plugin):h:5000/app:pull", ("repository(plugin):h:5000/app:pull",) * 1),
    ],
)
def test_scopes(own: str, asked: str, wanted: tuple[str, ...]) -> None:
    """What the registry asks for and what is wanted of the same repository add up; nothing else is invented."""
    scopes = Scopes(own)
    scopes.add(asked)

    assert set(wanted) <= set(scopes.wanted())
    assert "repository:app:pull" in scopes.wanted() or "app" not in own or "cache" in asked or "push" in own


@given(st.text(alphabet="ab:/, ()*", max_size=30), st.text(alphabet="ab:/, ()*", max_size=30))
def test_any_scopes_add_up(first: str, second: str) -> None:
    """Scopes of any shape are kept, and adding the same again changes nothing."""
    scopes = Scopes("repository:app:pull")
    scopes.add(first)
    scopes.add(second)
    before = scopes.wanted()
    scopes.add(second)

    assert scopes.wanted() == before
    assert all(before)


def test_each_scope_is_a_parameter() -> None:
    """By GET each scope is a parameter of its own, escaped; by POST they stand in one field."""
    service = Service((200, {"token": "T"}), (200, {"access_token": "T"}))
    two = bearer(scope="repository:app:pull repository:b/c:pull", service="a b&c")

    assert authorizer(service).answer(refusal(two), "", "what")
    assert service.scopes() == ["repository:app:pull", "repository:b/c:pull"]
    assert "service=a+b%26c" in str(service.asked[0].url) or "service=a%20b%26c" in str(service.asked[0].url)
    assert authorizer(service, Credentials(identity_token=SECRET)).answer(refusal(two), "", "what")
    assert service.form()["scope"] == "repository:app:pull repository:b/c:pull"


@pytest.mark.parametrize("status", [400, 401, 404, 405])
def test_identity_token_where_post_is_unknown(status: int) -> None:
    """A service that knows only GET gets the identity token as a password."""
    service = Service((status, {}), (200, {"token": "T"}))
    made = authorizer(service, Credentials(identity_token=SECRET))

    assert made.answer(refusal(bearer()), "", "what")
    assert made.value("what") == "Bearer T"
    assert [each.method for each in service.asked] == ["POST", "GET"]
    expected = "Basic " + base64.b64encode(f":{SECRET}".encode()).decode()
    assert service.asked[1].headers["authorization"] == expected


@pytest.mark.parametrize(("status", "methods"), [(404, ["GET", "POST"]), (405, ["GET", "POST"]), (401, ["GET"])])
def test_password_where_get_is_unknown(status: int, methods: list[str]) -> None:
    """A service that knows only POST gets the password there; one that refuses it is not asked twice."""
    service = Service((status, {}), (200, {"access_token": "T"}))
    made = authorizer(service, Credentials("me", SECRET))
    try:
        made.answer(refusal(bearer()), "", "what")
    except HostFailure as failure:
        assert isinstance(failure.error, Unauthenticated)
    assert [each.method for each in service.asked] == methods
    if len(methods) == 2:
        assert service.form() | {"service": ""} == {
            "client_id": "bulkhead",
            "grant_type": "password",
            "username": "me",
            "password": SECRET,
            "scope": "repository:app:pull",
            "service": "",
        }


def test_new_refresh_token_replaces_the_old() -> None:
    """A service that hands out another refresh token is asked with that one from then on."""
    service = Service((200, {"access_token": "A", "refresh_token": "next"}), (200, {"access_token": "B"}))
    made = authorizer(service, Credentials(identity_token=SECRET))
    made.answer(refusal(bearer()), "", "what")
    made.answer(refusal(bearer()), "Bearer A", "what")

    assert [service.form(n)["refresh_token"] for n in range(2)] == [SECRET, "next"]


def test_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token whose time is nearly over is replaced without waiting for a refusal."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    service = Service((200, {"token": "A", "expires_in": 300}), (200, {"token": "B", "expires_in": 300}))
    made = authorizer(service)
    made.answer(refusal(bearer()), "", "what")

    now[0] += 280
    assert made.value("what") == "Bearer A"
    now[0] += 15
    assert made.value("what") == "Bearer B"
    assert len(service.asked) == 2


@pytest.mark.parametrize("life", [None, 0, -5, "60", True, 1e300, []])
def test_life_that_says_nothing(life: object) -> None:
    """A token without a sound end is used until it is refused."""
    service = Service((200, {"token": "A", "expires_in": life}))
    made = authorizer(service)
    made.answer(refusal(bearer()), "", "what")

    assert made.value("what") == "Bearer A"


def test_more_scope_is_asked_for() -> None:
    """A refusal for lack of scope that names more is answered, one that names no more is not."""
    service = Service((200, {"token": "A"}), (200, {"token": "B"}))
    made = authorizer(service)
    lacking = bearer(scope="repository:app:pull,push", error="insufficient_scope")

    assert made.answer(refusal(bearer(scope="repository:app:pull")), "", "what")
    assert made.answer(refusal(lacking), "Bearer A", "what")
    assert service.scopes() == ["repository:app:pull,push"]
    assert not made.answer(refusal(lacking), "Bearer B", "what")


def test_scope_for_a_while() -> None:
    """What is needed for one request is asked for before it and not after it."""
    service = Service(*[(200, {"token": name}) for name in "ABC"])
    made = authorizer(service, actions="pull,push")
    made.answer(refusal(bearer()), "", "what")
    with made.also("repository:other:pull"):
        assert made.value("what") == "Bearer B"
        assert service.scopes() == ["repository:other:pull"] or "repository:other:pull" in service.scopes()
    assert made.value("what") == "Bearer C"
    assert service.scopes() == ["repository:app:pull,push"]


def test_basic_where_the_token_service_fails() -> None:
    """A registry that takes passwords as well gets one when its token service does not answer."""

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    made = Authorizer(lambda: "https://r.example", "s", Account(Credentials("me", SECRET)), broken)

    assert made.answer(refusal(f'{bearer()}, Basic realm="x"'), "", "what")
    assert made.value("what").startswith("Basic ")


def test_broken_token_service_is_named() -> None:
    """A token service that cannot be reached is named, not the registry."""

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    made = Authorizer(lambda: "https://r.example", "s", Account(), broken)

    with pytest.raises(HostFailure, match=r"RegistryUnavailable: what: token: https://auth\.example: ") as caught:
        made.answer(refusal(bearer()), "", "what")
    assert caught.value.retry


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.text(max_size=9) | st.integers(), st.lists).map(
        lambda tree: json.dumps(tree).encode()
    )
    | st.dictionaries(
        st.sampled_from(["token", "access_token", "expires_in", "refresh_token"]),
        st.none() | st.text(max_size=9) | st.integers() | st.floats() | st.lists(st.integers(), max_size=1),
    ).map(lambda tree: json.dumps(tree).encode())
)
def test_any_token_answer(body: bytes) -> None:
    """Whatever a token service answers is a token that a header can carry, or Unauthenticated."""
    made = authorizer(Service((200, body)), Credentials(identity_token=SECRET))
    try:
        token, life = made._token(Challenge("bearer", {"realm": REALM}), (), "what")
    except HostFailure as failure:
        assert isinstance(failure.error, Unauthenticated)
        return
    assert token.isascii()
    assert token.isprintable()
    assert life > 0


@given(st.text(max_size=60))
def test_any_realm(realm: str) -> None:
    """Whatever a challenge names as its realm is asked or refused as a failure of that host."""
    made = authorizer(Service((200, {"token": "T"}), (200, {"token": "T"})))
    try:
        made.answer(httpx.Response(401, headers=[(b"www-authenticate", f'Bearer realm="{realm}"'.encode())]), "", "w")
    except (HostFailure, httpx.InvalidURL):
        return


#: Any text, some marked by what is in no message, some that decodes.
_VALUES = (
    st.text(max_size=20)
    | st.text(max_size=20).map("§{}".format)
    | st.binary(max_size=20).map(lambda data: base64.b64encode(data).decode())
)
AUTHS = st.fixed_dictionaries({}, optional=dict.fromkeys(AuthConfig.DESCRIPTOR.fields_by_name, _VALUES))


@given(AUTHS, st.sampled_from(["q.io", "localhost:5000", "registry-1.docker.io", "[::1]:5000"]))
def test_any_auth_config(fields: dict[str, str], host: str) -> None:
    """Whatever an AuthConfig holds is nobody, credentials that headers can carry, or InvalidArgument."""
    try:
        found = credentials.for_host(Host("https", host), AuthConfig(**fields), Registry()).known
    except InvalidArgument as error:
        assert "§" not in str(error)
        return
    assert found.basic.isascii()
    for token in (found.identity_token, found.registry_token):
        assert token.isascii()
        assert token.isprintable()


def test_json_key() -> None:
    """A JSON key as password, with the user _json_key, goes through either form whole."""
    key = json.dumps({"type": "service_account", "private_key": "-----BEGIN\nKEY:-----\n"}, indent=2)
    packed = base64.encodebytes(f"_json_key:{key}".encode()).decode()
    host = Host("https", "gcr.io")

    for auth in (AuthConfig(username="_json_key", password=key), AuthConfig(auth=packed)):
        found = credentials.for_host(host, auth, Registry()).known
        assert base64.b64decode(found.basic.removeprefix("Basic ")).decode() == f"_json_key:{key}"


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
def test_each_of_a_providers_credentials_is_tried(registry: FakeRegistry, scheme: str) -> None:
    """What a provider gave is tried in turn until the registry is content, each once."""
    held = registry.push_manifest("app", "1", b"{}", "application/vnd.oci.image.manifest.v1+json")
    given = [(Credentials(f"user{n}", "p"), f"provider {n}") for n in range(5)]
    last = given[-1][0].basic
    with fake_registry() as tokens:
        right = json.dumps({"token": "right"}).encode()
        tokens.on("/token", lambda h: h.reply(200, right) if h.headers.get("Authorization") == last else h.reply(401))
        challenge = "Basic" if scheme == "Basic" else f'Bearer realm="http://{tokens.address}/token"'
        wanted = last if scheme == "Basic" else "Bearer right"
        registry.on(
            "/v2/",
            lambda h: h.headers.get("Authorization") != wanted and h.reply(401, WWW_Authenticate=challenge),
        )
        account = Account(ask=lambda: list(given))
        endpoint = Endpoint(Host("http", registry.address), registry.address, "app", account)
        with endpoint.request("HEAD", "manifests/1", "what", Patience(5.0, "request")) as response:
            assert response.headers["docker-content-digest"] == held
        endpoint.close()

    assert account.source == "provider 4"
    assert "user0:p" not in account.redact(base64.b64encode(b"user0:p").decode())
    assert len(tokens.seen) == (0 if scheme == "Basic" else 5)
    assert len(registry.seen) == (6 if scheme == "Basic" else 2)


# Secrets


def ways(address: str) -> list[tuple[AuthConfig | None, Registry]]:
    """Return every way that a secret comes in by; the last leaves it to a credential provider."""
    packed = base64.b64encode(f"me:{SECRET}".encode()).decode()
    none = Registry(config_path=())
    stored = Registry(config_path=(), auths={address: RegistryAuth(username="me", password=SECRET)})
    return [
        (AuthConfig(username="me", password=SECRET), none),
        (AuthConfig(auth=packed), none),
        (AuthConfig(identity_token=SECRET), none),
        (AuthConfig(registry_token=SECRET), none),
        (None, stored),
        (None, none),
    ]


def echoing(challenge: str, status: int) -> Rule:
    """Return a rule that asks for credentials, refuses them, and repeats them as a debugging proxy might."""

    def rule(handler: Handler) -> bool:
        said = handler.headers.get("Authorization", "")
        said += handler.read().decode()
        if not said:
            return handler.reply(401, WWW_Authenticate=challenge)
        plain = said.removeprefix("Bearer ")
        if said.startswith("Basic "):
            plain = base64.b64decode(said.removeprefix("Basic ")).decode()
        message = json.dumps({"errors": [{"code": "DENIED", "message": f"{said} {plain}"}]})
        return handler.reply(status, message.encode(), WWW_Authenticate=f'Basic realm="{plain}"')

    return rule


def provider(directory: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Providers]:
    """Set up a credential provider and return a maker of the client."""
    version = "credentialprovider.kubelet.k8s.io/v1"
    one: dict[str, Any] = {"name": "p", "matchImages": [address], "defaultCacheDuration": "1m", "apiVersion": version}
    one["env"] = [{"name": "TOKEN", "value": SECRET}]
    tree = {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [one]}
    (directory / "p.json").write_text(json.dumps(tree))
    answer: dict[str, Any] = {"apiVersion": version, "kind": "CredentialProviderResponse", "cacheKeyType": "Global"}
    answer["auth"] = {address: {"username": "me", "password": SECRET}}
    monkeypatch.setattr(command, "run", lambda args, **_: Result(tuple(args), 0, json.dumps(answer).encode(), b""))
    return lambda: Providers(str(directory / "p.json"), "/opt/bin")


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("scheme", ["basic", "bearer", "granted"])
def test_secrets_are_never_told(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    status: int,
) -> None:
    """However a secret came in, and whoever repeats it, no error and no log line holds it, nor its base64."""
    caplog.set_level(logging.DEBUG)
    for chatty in ("httpx", "httpcore"):  # as bulkhead.log has them
        monkeypatch.setattr(logging.getLogger(chatty), "level", logging.WARNING)
    make = provider(tmp_path, registry.address, monkeypatch)
    told = 0
    with fake_registry() as tokens:
        granted = json.dumps({"token": "t0ken-given", "refresh_token": "r3fresh"}).encode()
        tokens.on("/token", echoing("Basic", status))
        if scheme == "granted":
            tokens.on("/token", lambda handler: bool(handler.read() or True) and handler.reply(200, granted))
        registry.on(
            "/v2/", echoing("Basic" if scheme == "basic" else f'Bearer realm="http://{tokens.address}/token"', status)
        )
        for auth, settings in ways(registry.address):
            name = reference.parse(f"{registry.address}/app:1")
            repository = Repository(name, settings, auth, providers=make(), retry=Retry(rounds=1))
            with repository.held(), pytest.raises(BulkheadError) as caught:
                repository.manifest(Descriptor(digests.of(b""), 0, ""), Patience(5.0, "manifest"))
            told += "***" in str(caught.value)
            for secret in (SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode(), "t0ken-given", "r3fresh"):
                assert secret not in str(caught.value)
                assert secret not in caplog.text
            assert SECRET not in repr(Config(images=Images(registry=settings)))
    assert told >= 2, "nobody repeated a secret"
