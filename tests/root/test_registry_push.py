"""Pushing to Debian's docker-registry, over connections that break, with passwords and with tokens."""

import gzip
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.config.model import Registry
from bulkhead.errors import Unauthenticated
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.oci import digests, reference
from image_svc.patience import Patience
from image_svc.registry.push import Outcome, Pusher
from image_svc.registry.repository import Descriptor, Repository, Retry
from support.cutting_proxy import cutting_proxy
from support.images import MEDIA
from support.registry import registry as run_registry
from support.token_server import TokenServer, token_server

pytestmark = pytest.mark.root

LAYER = gzip.compress(os.urandom(10 << 20), 1)
NONE = Registry(config_path=())
QUICK = Retry(rounds=4, first_wait=0.05)


@pytest.fixture(scope="module")
def target(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a registry that takes everything."""
    with run_registry(tmp_path_factory.mktemp("target")) as address:
        yield address


def patience() -> Patience:
    """Return time enough for one test."""
    return Patience(60.0, "push")


def pusher(name: str, auth: AuthConfig | None = None) -> Pusher:
    """Return a client that pushes to a name."""
    return Pusher(reference.parse(name), NONE, auth, retry=QUICK)


def blob(directory: Path, data: bytes) -> tuple[Descriptor, Path]:
    """Put a blob on disk and return its descriptor."""
    path = directory / "blob"
    path.write_bytes(data)
    return Descriptor(digests.of(data), len(data), MEDIA["oci"]["gzip"]), path


def fetched(address: str, path: str) -> bytes:
    """Ask a registry without any of our code."""
    request = urllib.request.Request(
        f"http://{address}/v2/{path}", headers={"Accept": f"{MEDIA['oci']['manifest']}, */*"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("chunk", [0, 3_000_000])
def test_blob_and_manifest(target: str, tmp_path: Path, chunk: int) -> None:
    """What was pushed is what the registry serves; a second push sends nothing, another repository mounts it."""
    descriptor, path = blob(tmp_path, LAYER)
    first = pusher(f"{target}/push{chunk}/one:1")
    config = b'{"architecture":"amd64","os":"linux"}'
    small, small_path = Descriptor(digests.of(config), len(config), MEDIA["oci"]["config"]), tmp_path / "config"
    small_path.write_bytes(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MEDIA["oci"]["manifest"],
        "config": {"mediaType": small.media_type, "digest": small.digest, "size": small.size},
        "layers": [{"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}],
    }
    with first.held():
        assert first.blob(descriptor, path, patience(), chunk=chunk) is Outcome.UPLOADED
        assert first.blob(descriptor, path, patience()) is Outcome.PRESENT
        assert first.blob(small, small_path, patience()) is Outcome.UPLOADED
        data = json.dumps(manifest).encode()
        digest = first.manifest(data, MEDIA["oci"]["manifest"], patience(), tag="1")
        assert first.has_manifest(Descriptor(digest, len(data), MEDIA["oci"]["manifest"]), patience())
    second = pusher(f"{target}/push{chunk}/two:1")
    with second.held():
        assert second.blob(descriptor, path, patience(), mount_from=[f"push{chunk}/one"]) is Outcome.MOUNTED

    assert fetched(target, f"push{chunk}/one/blobs/{descriptor.digest}") == LAYER
    assert fetched(target, f"push{chunk}/one/manifests/1") == data
    repository = Repository(reference.parse(f"{target}/push{chunk}/one:1"), NONE)
    with repository.held():
        assert repository.resolve(patience()).digest == digest


def test_broken_connections(target: str, tmp_path: Path) -> None:
    """A push whose connection is cut ends all the same, with the right bytes.

    This registry throws away what a broken request brought, so the upload begins anew; one that keeps it, as the OCI
    specification has it, is asked for the rest only (the unit tests).
    """
    descriptor, path = blob(tmp_path, LAYER)
    told: list[int] = []
    with cutting_proxy(target) as cuts:
        cuts.limits[:] = [2_000_000, 4_000_000]
        made = pusher(f"{cuts.address}/broken:1")
        with made.held():
            assert made.blob(descriptor, path, patience(), progress=told.append) is Outcome.UPLOADED

    assert fetched(target, f"broken/blobs/{descriptor.digest}") == LAYER
    assert cuts.cut == 2
    assert cuts.sent < len(LAYER) + 7_000_000
    assert told[-1] == len(LAYER)


def test_tokens(own_network: None, tmp_path: Path) -> None:
    """A real registry takes tokens for pull and push, and for the repository that is mounted from."""
    server = TokenServer("tester", "secret-word")
    descriptor, path = blob(tmp_path, b"x" * 3_000_000)
    auth = AuthConfig(username="tester", password="secret-word")
    with token_server(server, tmp_path) as settings, run_registry(tmp_path / "data", auth=settings) as address:
        one, two = (pusher(f"{address}/team/{name}:1", auth) for name in ("one", "two"))
        with one.held(), two.held():
            assert one.blob(descriptor, path, patience()) is Outcome.UPLOADED
            assert server.asked == ["repository:team/one:pull,push"]
            assert two.blob(descriptor, path, patience(), mount_from=["team/one"]) is Outcome.MOUNTED
        assert "repository:team/one:pull" in server.asked[-1].split()
        nobody = pusher(f"{address}/team/one:1")
        with nobody.held(), pytest.raises(Unauthenticated):
            nobody.blob(descriptor, path, patience())


def test_identity_token_and_tokens_that_end(own_network: None, tmp_path: Path) -> None:
    """An identity token buys tokens by POST, and one that ends in the middle is replaced before it is refused."""
    server = TokenServer("tester", "secret-word", refresh="refresh-me", life=2)
    auth = AuthConfig(identity_token="refresh-me")
    with token_server(server, tmp_path) as settings, run_registry(tmp_path / "data", auth=settings) as address:
        made = pusher(f"{address}/team/app:1", auth)
        with made.held():
            for number in range(3):
                descriptor, path = blob(tmp_path, os.urandom(1000 + number))
                assert made.blob(descriptor, path, patience()) is Outcome.UPLOADED
                Patience(10.0, "pause").sleep(0.9)
    assert len(server.asked) >= 2
    assert set(server.asked) == {"repository:team/app:pull,push"}
