"""Credentials go to the host they are for, in the form it asks for, and nowhere else."""

import base64
import urllib.parse
from collections.abc import Iterator

import pytest
import zstandard

from bulkhead.config.model import Registry, RegistryAuth
from bulkhead.errors import (
    BulkheadError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.oci import digests, reference
from image_svc.patience import Patience
from image_svc.registry import credentials
from image_svc.registry.credentials import Account, Credentials
from image_svc.registry.hosts import Host
from image_svc.registry.repository import Descriptor, Repository, Retry
from support.fake_registry import FakeRegistry, Handler, fake_registry

SECRET = "s3cret-w0rd"
USER = AuthConfig(username="me", password=SECRET)
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
DATA = b'{"schemaVersion": 2}'
HUB = Host("https", "registry-1.docker.io")


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    """Run another server: a token service or a store of blobs."""
    with fake_registry() as made:
        yield made


def resolve(registry: FakeRegistry, auth: AuthConfig | None = None, settings: Registry | None = None) -> str:
    """Resolve app:1 and return its digest."""
    name = reference.parse(f"{registry.address}/app:1")
    repository = Repository(name, settings or Registry(config_path=()), auth, retry=Retry(rounds=1))
    with repository.held():
        return repository.resolve(Patience(5.0, "resolve")).digest


def protect(registry: FakeRegistry, challenge: str, accept: str) -> str:
    """Hold app:1, ask for credentials, take one Authorization header; return the digest."""
    held = registry.push_manifest("app", "1", DATA, "application/vnd.oci.image.manifest.v1+json")

    def rule(handler: Handler) -> bool:
        if handler.headers.get("Authorization") == accept:
            return False
        return handler.reply(401, b"{}", WWW_Authenticate=challenge)

    registry.on("/v2/", rule)
    return held


def token_service(second: FakeRegistry, answer: bytes) -> str:
    """Answer token requests and return the realm."""
    second.on("/token", lambda handler: handler.reply(200, answer, Content_Type="application/json"))
    return f"http://{second.address}/token"


def test_basic(registry: FakeRegistry) -> None:
    """Basic credentials are sent when asked for, not before."""
    held = protect(registry, 'Basic realm="x"', BASIC)

    assert resolve(registry, USER) == held
    assert [each.headers.get("authorization") for each in registry.seen] == [None, BASIC]


def test_basic_without_credentials(registry: FakeRegistry) -> None:
    """Nobody is told to be somebody: Unauthenticated after one request."""
    protect(registry, 'Basic realm="x"', BASIC)

    with pytest.raises(Unauthenticated):
        resolve(registry)
    assert len(registry.seen) == 1


def test_refused_credentials_are_not_told(registry: FakeRegistry) -> None:
    """An error never holds the password, even when the registry repeats it."""
    body = b'{"errors":[{"code":"DENIED","message":"wrong: ' + SECRET.encode() + b'"}]}'
    registry.on("/v2/", lambda handler: handler.reply(401, body, WWW_Authenticate="Basic"))

    repository = Repository(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), USER)

    with repository.held(), pytest.raises(Unauthenticated, match=r"DENIED: wrong: \*\*\*") as caught:
        repository.small_blob(Descriptor(digests.of(b""), 0, ""), 10, Patience(5.0, "blob"))
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(Credentials("me", SECRET))


def test_bearer(registry: FakeRegistry, second: FakeRegistry) -> None:
    """The token service gets Basic credentials, service and scope; the registry gets the token."""
    realm = token_service(second, b'{"token": "T1"}')
    scope = "repository:app:pull"
    held = protect(registry, f'Bearer realm="{realm}?a=b",service="s v",scope="{scope}"', "Bearer T1")

    assert resolve(registry, USER) == held
    (asked,) = second.seen
    assert urllib.parse.parse_qs(asked.path.partition("?")[2]) == {"a": ["b"], "service": ["s v"], "scope": [scope]}
    assert asked.headers["authorization"] == BASIC


def test_anonymous_bearer(registry: FakeRegistry, second: FakeRegistry) -> None:
    """A public repository gives a token to nobody; a scope is asked for even if the registry names none."""
    realm = token_service(second, b'{"access_token": "T2"}')
    held = protect(registry, f'Bearer realm="{realm}"', "Bearer T2")

    assert resolve(registry) == held
    assert "authorization" not in second.seen[0].headers
    assert "scope=repository%3Aapp%3Apull" in second.seen[0].path


def test_identity_token(registry: FakeRegistry, second: FakeRegistry) -> None:
    """An identity token is posted as an OAuth2 refresh token."""
    bodies: list[bytes] = []

    def answer(handler: Handler) -> bool:
        bodies.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        return handler.reply(200, b'{"access_token": "T3"}')

    second.on("/token", answer)
    realm = f"http://{second.address}/token"
    held = protect(registry, f'Bearer realm="{realm}",service="s"', "Bearer T3")

    assert resolve(registry, AuthConfig(identity_token=SECRET)) == held
    form = urllib.parse.parse_qs(bodies[0].decode())
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == [SECRET]
    assert form["service"] == ["s"]
    assert second.seen[0].method == "POST"


def test_registry_token(registry: FakeRegistry) -> None:
    """A registry token is a bearer token as it is."""
    held = protect(registry, 'Bearer realm="http://127.0.0.1:1/"', f"Bearer {SECRET}")

    assert resolve(registry, AuthConfig(registry_token=SECRET)) == held
    # With a file's line end, too.
    assert resolve(registry, AuthConfig(registry_token=f"{SECRET}\n")) == held


@pytest.mark.parametrize("status", [401, 403])
def test_token_service_refuses(registry: FakeRegistry, second: FakeRegistry, status: int) -> None:
    """A token service that refuses is named in the error."""
    second.on("/token", lambda handler: handler.reply(status, b"{}"))
    protect(registry, f'Bearer realm="http://{second.address}/token"', "none")

    with pytest.raises(Unauthenticated if status == 401 else PermissionDenied, match=second.address):
        resolve(registry, USER)


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"no"])
def test_token_service_without_a_token(registry: FakeRegistry, second: FakeRegistry, answer: bytes) -> None:
    """An answer without a token in it is an error, not a header."""
    protect(registry, f'Bearer realm="{token_service(second, answer)}"', "none")

    with pytest.raises(Unauthenticated, match="without a token"):
        resolve(registry)


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "", "http://", "http://[x"])
def test_realm_that_is_no_address(registry: FakeRegistry, realm: str) -> None:
    """A realm that is no http address is told."""
    protect(registry, f'Bearer realm="{realm}"', "none")

    with pytest.raises(Unauthenticated, match="asks for a token from"):
        resolve(registry)


def test_redirect_elsewhere_carries_no_secret(registry: FakeRegistry, second: FakeRegistry) -> None:
    """Another server that a registry sends us to sees neither Authorization nor configured headers."""
    held = protect(registry, "Basic", BASIC)
    manifest = registry.manifests["app/manifests/1"]
    second.manifests["app/manifests/1"] = manifest
    location = f"http://{second.address}/v2/app/manifests/1?signature=abc"
    registry.rules.insert(1, ("/manifests/", lambda handler: handler.reply(307, Location=location)))
    settings = Registry(config_path=(), headers={"X-Key": (SECRET,)})

    assert resolve(registry, USER, settings) == held
    assert registry.seen[-1].headers["authorization"] == BASIC
    assert registry.seen[-1].headers["x-key"] == SECRET
    assert SECRET not in str(second.seen)
    assert "authorization" not in second.seen[0].headers


def test_redirect_on_the_same_host_keeps_them(registry: FakeRegistry) -> None:
    """A redirect within the registry is followed as who we are."""
    held = protect(registry, "Basic", BASIC)
    registry.rules.insert(1, ("/manifests/1", lambda handler: handler.reply(302, Location="/v2/app/manifests/" + held)))

    assert resolve(registry, USER) == held


def test_redirects_in_a_circle_end(registry: FakeRegistry) -> None:
    """A registry that redirects to itself for ever is given up."""
    registry.on("/v2/", lambda handler: handler.reply(307, Location=handler.path))

    with pytest.raises(FailedPrecondition, match="circle"):
        resolve(registry)
    assert len(registry.seen) == 10


def test_error_after_a_redirect_hides_the_signature(registry: FakeRegistry, second: FakeRegistry) -> None:
    """The query of a signed address is in no error."""
    second.on("/", lambda handler: handler.reply(403))
    location = f"http://{second.address}/x?signature={SECRET}"
    registry.on("/v2/", lambda handler: handler.reply(307, Location=location))

    with pytest.raises(PermissionDenied) as caught:
        resolve(registry)
    assert SECRET not in str(caught.value)


def test_mirror_is_told_the_namespace(registry: FakeRegistry) -> None:
    """A mirror gets ns=, the registry itself does not."""
    held = registry.push_manifest("library/app", "1", DATA, "application/vnd.oci.image.manifest.v1+json")
    settings = Registry(config_path=(), mirrors={"docker.io": (f"http://{registry.address}",)})
    repository = Repository(reference.parse("app:1"), settings)

    with repository.held():
        assert repository.resolve(Patience(5.0, "resolve")).digest == held
    assert registry.seen[0].path == "/v2/library/app/manifests/1?ns=docker.io"


@pytest.mark.parametrize(
    ("auth", "host", "expected"),
    [
        (USER, HUB, Credentials("me", SECRET)),
        (AuthConfig(username="me", password="p", server_address="https://index.docker.io/v1/"), HUB, ("me", "p")),
        (AuthConfig(username="me", password="p", server_address="docker.io"), HUB, ("me", "p")),
        (AuthConfig(username="me", password="p", server_address="quay.io"), HUB, None),
        (AuthConfig(username="me", password="p", server_address="h:5000"), Host("https", "h:5000"), ("me", "p")),
        (AuthConfig(username="me", password="p", server_address="h:443"), Host("https", "h"), ("me", "p")),
        (AuthConfig(username="me", password="p", server_address="h:5001"), Host("https", "h:5000"), None),
        (AuthConfig(auth=base64.b64encode(b"me:p:q\0").decode()), HUB, ("me", "p:q")),
        (AuthConfig(), HUB, ("conf", "word")),
        (None, HUB, ("conf", "word")),
        (None, Host("https", "quay.io"), None),
    ],
)
def test_who_gets_what(auth: AuthConfig | None, host: Host, expected: object) -> None:
    """A server address limits credentials to that server; without any, the configuration's are used."""
    registry = Registry(auths={"https://index.docker.io/v1/": RegistryAuth(username="conf", password="word")})

    found = credentials.for_host(host, auth, registry).known

    if isinstance(expected, tuple):
        expected = Credentials(*expected)
    assert found == (expected or Credentials())


@pytest.mark.parametrize(
    "auth", ["!!!", base64.b64encode(b"nocolon").decode(), base64.b64encode(b"\xff:\xfe").decode()]
)
def test_auth_that_is_no_auth(auth: str) -> None:
    """A malformed auth field is InvalidArgument that does not repeat it."""
    with pytest.raises(InvalidArgument) as caught:
        credentials.for_host(HUB, AuthConfig(auth=auth), Registry())
    assert auth not in str(caught.value)


def test_expired_token_is_renewed(registry: FakeRegistry, second: FakeRegistry) -> None:
    """A token that is refused later on is replaced once."""
    tokens = iter([b'{"token": "A"}', b'{"token": "B"}'])
    second.on("/token", lambda handler: handler.reply(200, next(tokens)))
    valid = ["Bearer A"]
    registry.push_manifest("app", "1", DATA, "application/vnd.oci.image.manifest.v1+json")
    realm = f'Bearer realm="http://{second.address}/token"'
    registry.on(
        "/v2/",
        lambda handler: (
            handler.headers.get("Authorization") not in valid and handler.reply(401, WWW_Authenticate=realm)
        ),
    )
    name = reference.parse(f"{registry.address}/app:1")
    repository = Repository(name, Registry(config_path=()), None, retry=Retry(rounds=1))

    with repository.held():
        repository.resolve(Patience(5.0, "first"))
        valid[:] = ["Bearer B"]
        repository.resolve(Patience(5.0, "second"))
    assert len(second.seen) == 2


def test_credentials_are_not_sent_in_the_clear() -> None:
    """An https registry that wants credentials sent to an http address does not get them."""
    from image_svc.registry.challenge import Challenge
    from image_svc.registry.failures import HostFailure
    from image_svc.registry.tokens import Authorizer

    def never(request: object) -> None:
        raise AssertionError("sent")

    made = Authorizer(lambda: "https://r.example", "s", Account(Credentials("me", SECRET)), never)  # type: ignore[arg-type]

    with pytest.raises(HostFailure, match="unencrypted") as caught:
        made._token(Challenge("bearer", {"realm": "http://r.example/token"}), (), "what")
    assert isinstance(caught.value.error, BulkheadError)


def test_redirected_challenge_is_not_answered(registry: FakeRegistry, second: FakeRegistry) -> None:
    """A server that the registry redirects to cannot have our credentials sent to a realm of its choice."""
    protect(registry, "Basic", BASIC)
    realm = token_service(second, b'{"token": "T"}')
    second.on("/elsewhere", lambda handler: handler.reply(401, WWW_Authenticate=f'Bearer realm="{realm}"'))
    location = f"http://{second.address}/elsewhere"
    registry.rules.insert(1, ("/manifests/", lambda handler: handler.reply(307, Location=location)))

    with pytest.raises(Unauthenticated):
        resolve(registry, USER)
    assert second.asked("/elsewhere")
    assert not second.asked("/token")


def test_compressed_error_is_not_inflated(registry: FakeRegistry) -> None:
    """An error body that was compressed unasked, which may hold gigabytes, is passed over."""
    body = zstandard.compress(b'{"errors": [{"code": "BOMB", "message": "' + b"0" * 2_000_000 + b'"}]}')
    registry.on("/v2/", lambda handler: handler.reply(403, body, Content_Encoding="zstd"))
    name = reference.parse(f"{registry.address}/app:1")
    repository = Repository(name, Registry(config_path=()), None, retry=Retry(rounds=1))

    with repository.held(), pytest.raises(PermissionDenied) as caught:
        repository.manifest(Descriptor(digests.of(DATA), len(DATA), ""), Patience(5.0, "manifest"))
    assert "BOMB" not in str(caught.value)


@pytest.mark.parametrize("header", ["Retry_After", "Content_Range"])
def test_headers_of_nonsense(registry: FakeRegistry, header: str) -> None:
    """A header that no parser can make sense of is the registry's failure, not ours."""
    value = {"Retry_After": "Fri, 31 Dec 9999 23:59:59 -0000", "Content_Range": f"bytes {'9' * 5000}-1/2"}[header]
    status = 503 if header == "Retry_After" else 206
    registry.on("/v2/", lambda handler: handler.reply(status, b"", **{header: value}))
    name = reference.parse(f"{registry.address}/app:1")
    repository = Repository(name, Registry(config_path=()), None, retry=Retry(rounds=1))
    wanted = Descriptor(digests.of(DATA), len(DATA), "")

    with repository.held(), pytest.raises(Unavailable, match=registry.address):
        repository.download(wanted, lambda: 1, lambda part: None, Patience(5.0, "download"))
