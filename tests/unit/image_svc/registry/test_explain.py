"""Explaining a name: every host in order, why, and what it answers; never a secret."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.config.model import Registry, RegistryAuth
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.oci import digests, reference
from image_svc.patience import Patience
from image_svc.registry.explain import Explanation, explain
from image_svc.registry.repository import Repository
from support.fake_registry import FakeRegistry, fake_registry

KIND = "application/vnd.oci.image.manifest.v1+json"
DATA = b'{"schemaVersion": 2}'
SECRET = "s3cret-w0rd"


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    """Run another registry."""
    with fake_registry() as made:
        yield made


@pytest.fixture
def settings(registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path) -> Registry:
    """Configure a mirror for content only, one for tags as well, and the registry itself."""
    (tmp_path / "q.io").mkdir()
    text = f"""server = "http://{registry.address}"

[host."http://content.example"]
capabilities = ["pull"]
[host."http://{mirror.address}"]
capabilities = ["pull", "resolve"]
[host."http://{mirror.address}".header]
X-Secret = "{SECRET}"
"""
    (tmp_path / "q.io" / "hosts.toml").write_text(text)
    auths = {mirror.address: RegistryAuth(username="me", password=SECRET)}
    return Registry(config_path=("/nonexistent", str(tmp_path)), auths=auths)


def asked(
    settings: Registry, text: str = "q.io/app:1", *, auth: bool = False, offline: bool = False, push: bool = False
) -> Explanation:
    """Explain a name."""
    given = AuthConfig(username="you", password=SECRET, server_address="other.example") if auth else None
    found = explain(text, settings, Patience(20.0, "explanation"), given, offline=offline, push=push)
    assert SECRET not in repr(found)
    return found


def test_offline(settings: Registry, registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path) -> None:
    """Without asking anybody, every host is there with what named it and what it would be shown."""
    found = asked(settings, offline=True)

    path = tmp_path / "q.io" / "hosts.toml"
    assert found.reference == "q.io/app:1"
    assert [step.url for step in found.steps] == [
        "http://content.example/v2/app?ns=q.io",
        f"http://{mirror.address}/v2/app?ns=q.io",
        f"http://{registry.address}/v2/app?ns=q.io",
    ]
    assert [step.source for step in found.steps] == [f"{path}:3: host", f"{path}:5: host", f"{path}:1: server"]
    assert [step.usable for step in found.steps] == [False, True, True]
    assert "lacks the capability resolve" in found.steps[0].result
    assert "content is fetched from it" in found.steps[0].result
    assert found.steps[1].credentials == f"registry.configs.{mirror.address!r}.auth"
    assert found.steps[1].headers == ("X-Secret",)
    assert found.steps[2].credentials == "anonymous"
    assert found.steps[2].capabilities == ("pull", "push", "referrers", "resolve")
    assert found.notes == (f"host configuration of q.io: {path.parent}, the first found in /nonexistent, {tmp_path}",)
    assert registry.seen == mirror.seen == []


def test_asked(settings: Registry, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    """Each host that may be asked is, and says what it has; the first that has it decides."""
    registry.push_manifest("app", "1", DATA, KIND)

    found = asked(settings)

    assert (found.digest, found.media_type, found.error) == (digests.of(DATA), KIND, None)
    assert [step.usable for step in found.steps] == [False, False, True]
    assert "answered 404" in found.steps[1].result
    assert found.steps[2].result == f"has {digests.of(DATA)}"
    assert found.steps[2].seconds > 0
    mirror.push_manifest("app", "1", DATA + b" ", KIND)
    other = asked(settings)
    assert other.digest == digests.of(DATA + b" ")
    assert other.steps[2].result.endswith("other than the first answer")


def test_nobody_has_it(settings: Registry) -> None:
    """What no host has is told with each host's answer."""
    found = asked(settings, auth=True)

    assert found.digest == ""
    assert str(found.error).count("answered 404") == 2
    assert found.steps[2].credentials == "anonymous: the request's credentials are for other.example"


def test_push(settings: Registry, registry: FakeRegistry, mirror: FakeRegistry) -> None:
    """A push goes to the first host that allows it and to no other; that nothing is there yet is no error."""
    found = asked(settings, push=True)

    assert [step.usable for step in found.steps] == [False, False, True]
    assert "lacks the capability push" in found.steps[0].result
    assert found.steps[2].result == "has nothing of that name yet"
    assert found.error is None
    assert mirror.seen == []


def test_wrong_file(settings: Registry, tmp_path: Path) -> None:
    """A file that would fail the pull is the explanation."""
    (tmp_path / "q.io" / "hosts.toml").write_text("server = 5")

    found = asked(settings)

    assert "hosts.toml: server: must be a string (at line 1)" in str(found.error)
    assert found.steps == ()
    with pytest.raises(InvalidArgument):
        asked(settings, "q.io/APP")


def test_defaults(tmp_path: Path) -> None:
    """Without any configuration the registry itself is asked, and it is told where configuration was looked for."""
    found = asked(Registry(config_path=(str(tmp_path),)), "busybox", offline=True)

    assert found.steps[0].url == "https://registry-1.docker.io/v2/library/busybox"
    assert found.steps[0].source == "no host configuration: the registry itself"
    assert found.steps[0].tls == "verified"
    assert found.notes == (f"no directory for docker.io and no _default in {tmp_path}",)
    assert asked(Registry(config_path=()), offline=True).notes == ("no registry.config_path is set",)
    mirrors = Registry(config_path=(), mirrors={"q.io": ("localhost:5000",)})
    old = asked(mirrors, offline=True)
    assert [step.tls for step in old.steps] == ["none", "verified"]
    assert "deprecated" in old.notes[0]
    (local,) = asked(Registry(config_path=()), "localhost:5000/app", offline=True).steps
    assert local.tls == "certificate not verified, http where the port speaks no TLS"


def test_a_tag_needs_a_host_that_has_the_content(tmp_path: Path) -> None:
    """A host that may resolve and not pull is not asked what a tag stands for, as under containerd."""
    (tmp_path / "q.io").mkdir()
    (tmp_path / "q.io" / "hosts.toml").write_text('server = "http://127.0.0.1:1"\ncapabilities = ["resolve"]')
    settings = Registry(config_path=(str(tmp_path),))

    assert str(asked(settings).error) == "q.io/app:1: no host has the capabilities pull and resolve"
    assert asked(settings).steps[0].result == "not asked: lacks the capability pull"
    with pytest.raises(FailedPrecondition, match="no host with the capabilities pull and resolve"):
        Repository(reference.parse("q.io/app:1"), settings).resolve(Patience(5.0, "resolve"))


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_certificate_that_cannot_be_used(
    settings: Registry, registry: FakeRegistry, mirror: FakeRegistry, tmp_path: Path, text: str | None
) -> None:
    """A mistake at one host ends a pull, and so it is told, whoever after that host has the image."""
    for each in (registry, mirror):
        each.push_manifest("app", "1", DATA, KIND)
    path = tmp_path / "q.io" / "hosts.toml"
    if text is not None:
        (path.parent / "ca.crt").write_text(text)
    path.write_text(f'server = "http://{registry.address}"\n[host."https://first.example"]\nca = "ca.crt"\n')
    found = asked(settings)
    assert isinstance(found.error, FailedPrecondition)
    assert f"{path}:2: host: https://first.example: certificate file {path.parent / 'ca.crt'}: " in str(found.error)
    assert found.digest == ""
