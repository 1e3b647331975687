"""Pushing: what is there is not sent, what broke goes on, and everything goes to one host."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulkhead.config.model import Registry
from bulkhead.errors import (
    DataLoss,
    FailedPrecondition,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.oci import digests, reference
from image_svc.patience import Patience
from image_svc.registry.push import Outcome, Pusher
from image_svc.registry.repository import Descriptor
from support.fake_registry import FakeRegistry, Handler, fake_registry
from support.image_node import QUICK

SMALL = b"small blob"
LARGE = os.urandom(3 << 20)
KIND = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def second() -> Iterator[FakeRegistry]:
    """Run another server."""
    with fake_registry() as made:
        yield made


@pytest.fixture
def push(registry: FakeRegistry, tmp_path: Path) -> Iterator[Callable[..., Outcome]]:
    """Return a function that pushes a blob to app."""
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)

    def run(data: bytes, **options: object) -> Outcome:
        (tmp_path / "blob").write_bytes(data)
        wanted = Descriptor(digests.of(data), len(data), "")
        return pusher.blob(wanted, tmp_path / "blob", Patience(20.0, "push"), **options)  # type: ignore[arg-type]

    with pusher.held():
        yield run


def test_small_blob_in_one_request(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A small blob goes out with the request that ends the upload."""
    assert push(SMALL) is Outcome.UPLOADED
    assert registry.blobs[digests.of(SMALL)] == SMALL
    assert [(each.method, each.path.partition("?")[0]) for each in registry.seen] == [
        ("HEAD", f"/v2/app/blobs/{digests.of(SMALL)}"),
        ("POST", "/v2/app/blobs/uploads/"),
        ("PUT", "/v2/app/blobs/uploads/0"),
    ]
    assert "state=a%2Fb" in registry.seen[-1].path


def test_present_blob_is_not_sent(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """What the repository has is not sent again."""
    registry.blobs[digests.of(SMALL)] = SMALL
    told: list[int] = []

    assert push(SMALL, progress=told.append) is Outcome.PRESENT
    assert [each.method for each in registry.seen] == ["HEAD"]
    assert told == [len(SMALL)]


def test_large_blob(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A large blob goes out in one request and is ended by another; progress never goes back."""
    told: list[int] = []

    assert push(LARGE, progress=told.append) is Outcome.UPLOADED
    assert registry.blobs[digests.of(LARGE)] == LARGE
    assert registry.uploads.bodies == [("PATCH", len(LARGE)), ("PUT", 0)]
    assert told == sorted(told)
    assert told[-1] == len(LARGE)


def test_chunks(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """Where requests may not be large, a blob goes out in pieces, each with its range."""
    assert push(LARGE, chunk=1 << 20) is Outcome.UPLOADED
    assert registry.uploads.bodies == [("PATCH", 1 << 20)] * 3 + [("PUT", 0)]
    assert [each.headers["content-range"] for each in registry.seen if each.method == "PATCH"] == [
        f"{n << 20}-{((n + 1) << 20) - 1}" for n in range(3)
    ]
    assert push(b"x" * 5, chunk=1) is Outcome.UPLOADED


def test_upload_goes_on_where_it_broke(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A broken upload goes on from the bytes that the registry kept, however often it breaks."""
    registry.uploads.cut[:] = [1_000_000, 500_000, 0, 700_000]

    assert push(LARGE) is Outcome.UPLOADED
    assert registry.blobs[digests.of(LARGE)] == LARGE
    sent = [count for method, count in registry.uploads.bodies if method == "PATCH"]
    assert sum(sent) == len(LARGE)
    assert sent[:2] == [1_000_000, 500_000]


def test_forgotten_upload_begins_anew(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """An upload that the registry does not know any more is begun again."""

    def forget(handler: Handler) -> bool:
        handler.read(100)
        registry.uploads.opened.clear()
        return True

    registry.once("/uploads/0", forget)

    assert push(LARGE) is Outcome.UPLOADED
    assert registry.blobs[digests.of(LARGE)] == LARGE


def test_answer_that_never_came(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """When the end of an upload was not confirmed, what arrived is not sent again."""

    def swallow(handler: Handler) -> bool:
        if handler.command != "PUT":
            return False
        registry.blobs[digests.of(LARGE)] = bytes(registry.uploads.opened.pop("0"))
        registry.rules.clear()
        return handler.break_off()

    registry.on("/uploads/0", swallow)

    assert push(LARGE) is Outcome.UPLOADED
    assert registry.uploads.bodies == [("PATCH", len(LARGE))]


def test_broken_for_good(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """An upload that makes no progress ends with the reason."""
    registry.on("/uploads/0", lambda handler: handler.reply(503))

    with pytest.raises(Unavailable, match=r"RegistryUnavailable: .*app@sha256:\w+: push: http.* answered 503"):
        push(LARGE)
    assert len([each for each in registry.seen if each.method == "PATCH"]) <= 1


@pytest.mark.parametrize(("status", "error"), [(403, PermissionDenied), (413, FailedPrecondition)])
def test_refused(registry: FakeRegistry, push: Callable[..., Outcome], status: int, error: type[Exception]) -> None:
    """A registry that refuses is asked once."""
    registry.on("/uploads/", lambda handler: bool(handler.read() or True) and handler.reply(status))

    with pytest.raises(error, match=str(status)):
        push(SMALL)
    assert len(registry.asked("/uploads/")) == 1


def test_mount(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A blob that another repository has is taken over from there."""
    registry.uploads.mountable["other/app"] = {digests.of(SMALL)}

    assert push(SMALL, mount_from=["app", "none", "other/app"]) is Outcome.MOUNTED
    posts = [each.path for each in registry.seen if each.method == "POST"]
    assert [path.partition("from=")[2] for path in posts] == ["none", "other%2Fapp"]


def test_mount_that_opens_an_upload(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A registry that cannot mount opens an upload instead, which is used."""
    assert push(SMALL, mount_from=["none"]) is Outcome.UPLOADED
    assert len([each for each in registry.seen if each.method == "POST"]) == 1


def test_mount_that_is_forbidden(registry: FakeRegistry, push: Callable[..., Outcome]) -> None:
    """A repository that may not be read is no reason to fail."""
    registry.on("mount=", lambda handler: handler.reply(403))

    assert push(SMALL, mount_from=["secret"]) is Outcome.UPLOADED


def test_wrong_size_on_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    """A file that is not as long as its descriptor says is DataLoss, and nothing is sent."""
    (tmp_path / "blob").write_bytes(SMALL)
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)

    with pusher.held(), pytest.raises(DataLoss, match=r"has 10 bytes, the manifest says 11"):
        pusher.blob(Descriptor(digests.of(SMALL), 11, ""), tmp_path / "blob", Patience(5.0, "push"))
    assert [each.method for each in registry.seen] == ["HEAD"]


def test_manifest(registry: FakeRegistry) -> None:
    """A manifest is put under its tag or its digest, with its media type."""
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)
    data = b'{"schemaVersion": 2}'
    wanted = Descriptor(digests.of(data), len(data), KIND)

    with pusher.held():
        assert not pusher.has_manifest(wanted, Patience(5.0, "push"))
        assert pusher.manifest(data, KIND, Patience(5.0, "push"), tag="1") == wanted.digest
        assert pusher.has_manifest(wanted, Patience(5.0, "push"))
    assert registry.manifests["app/manifests/1"] == (data, KIND)


def test_manifest_is_tried_again(registry: FakeRegistry) -> None:
    """A registry that asks for patience gets it."""
    registry.once("/manifests/1", lambda handler: bool(handler.read()) and handler.reply(429, Retry_After="0"))
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)

    with pusher.held():
        pusher.manifest(b"{}", KIND, Patience(5.0, "push"), tag="1")
        registry.on("/manifests/", lambda handler: bool(handler.read()) and handler.reply(429, Retry_After="900"))
        with pytest.raises(ResourceExhausted):
            pusher.manifest(b"{}", KIND, Patience(5.0, "push"), tag="1")


def test_registry_that_stored_something_else(registry: FakeRegistry) -> None:
    """A confirmation of another digest is DataLoss."""
    wrong = digests.of(b"else")
    registry.on(
        "/manifests/1", lambda handler: bool(handler.read()) and handler.reply(201, Docker_Content_Digest=wrong)
    )
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)

    with pusher.held(), pytest.raises(DataLoss, match=wrong):
        pusher.manifest(b"{}", KIND, Patience(5.0, "push"), tag="1")


def test_first_host_that_may_be_pushed_to(registry: FakeRegistry, second: FakeRegistry, tmp_path: Path) -> None:
    """hosts.toml says where pushes go: the first host with that capability, and a mirror is told whose it is."""
    (tmp_path / "q.io").mkdir()
    text = f'[host."http://{registry.address}"]\ncapabilities = ["pull", "resolve"]\n[host."http://{second.address}"]\n'
    (tmp_path / "q.io" / "hosts.toml").write_text(text)
    pusher = Pusher(reference.parse("q.io/app:1"), Registry(config_path=(str(tmp_path),)), retry=QUICK)

    with pusher.held():
        pusher.manifest(b"{}", KIND, Patience(5.0, "push"), tag="1")
    assert registry.seen == []
    assert second.seen[0].path == "/v2/app/manifests/1?ns=q.io"


def test_no_host_may_be_pushed_to(tmp_path: Path) -> None:
    """Without any such host the push fails by the capability's name."""
    (tmp_path / "q.io").mkdir()
    (tmp_path / "q.io" / "hosts.toml").write_text('capabilities = ["pull"]')

    with pytest.raises(FailedPrecondition, match="no host with the capability 'push'"):
        Pusher(reference.parse("q.io/app:1"), Registry(config_path=(str(tmp_path),)))


def test_upload_elsewhere_gets_no_credentials(registry: FakeRegistry, second: FakeRegistry, tmp_path: Path) -> None:
    """An upload that goes on at another host goes there without credentials."""
    (tmp_path / "blob").write_bytes(SMALL)
    second.on("/elsewhere", lambda handler: bool(handler.read()) and handler.reply(201))
    location = f"http://{second.address}/elsewhere"
    registry.on("/blobs/uploads/", lambda handler: handler.reply(202, Location=location))
    registry.on("/v2/", lambda h: "Authorization" not in h.headers and h.reply(401, WWW_Authenticate="Basic"))
    auth = AuthConfig(username="me", password="secret")
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), auth, retry=QUICK)

    with pusher.held():
        pusher.blob(Descriptor(digests.of(SMALL), len(SMALL), ""), tmp_path / "blob", Patience(5.0, "push"))
    assert "authorization" in registry.asked("/uploads/")[-1].headers
    assert "authorization" not in second.seen[0].headers


def test_scope_of_a_push(registry: FakeRegistry, second: FakeRegistry) -> None:
    """A token for a push is good for pull and push from the first request on, and asked for once."""
    second.on("/token", lambda handler: handler.reply(200, b'{"token": "T"}'))
    challenge = f'Bearer realm="http://{second.address}/token",scope="repository:app:pull",error="insufficient_scope"'
    registry.on("/v2/", lambda handler: bool(handler.read() or True) and handler.reply(401, WWW_Authenticate=challenge))
    pusher = Pusher(reference.parse(f"{registry.address}/app:1"), Registry(config_path=()), retry=QUICK)

    with pusher.held(), pytest.raises(Unauthenticated):
        pusher.manifest(b"{}", KIND, Patience(5.0, "push"), tag="1")
    assert [each.path for each in second.seen] == ["/token?scope=repository%3Aapp%3Apull%2Cpush"]
