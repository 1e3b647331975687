"""The compartments over HTTP."""

import asyncio

import httpx
import pytest

from bulkhead.cli import status_page
from bulkhead.config.model import Config
from bulkhead.errors import InvalidArgument
from bulkhead.supervisor import faces, pods
from bulkhead.supervisor.faces import Face


def get(path: str) -> httpx.Response:
    """Ask the application in this process."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(status_page.application(Config()))
        async with httpx.AsyncClient(transport=transport, base_url="http://status") as client:
            return await client.get(path)

    return asyncio.run(ask())


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Face]:
    """What the services look like, for a test to change."""
    seen = {"image-svc": Face("image-svc", True, True), "decryptor": Face("decryptor", True, True)}
    monkeypatch.setattr(faces, "all_faces", lambda _: list(seen.values()))
    monkeypatch.setattr(faces, "look", lambda _, name: seen[name])
    monkeypatch.setattr(pods, "live_shims", lambda _: [1, 2])
    return seen


def test_a_ready_stack(found: dict[str, Face]) -> None:
    """All services with their state, and 200."""
    answer = get("/status")

    expected = {name: {"state": "ready", "lines": []} for name in found}
    assert (answer.status_code, answer.json()) == (200, {"services": expected, "shims": 2})


def test_a_service_that_is_down(found: dict[str, Face]) -> None:
    """503 for the whole and for that service, with what it complains of; 200 for another; 404 for none."""
    found["decryptor"] = Face("decryptor", True, False, ("no keys",))

    assert get("/status").status_code == 503
    one = get("/status/decryptor")
    assert (one.status_code, one.json()) == (503, {"state": "not ready", "lines": ["no keys"]})
    assert get("/status/image-svc").status_code == 200
    assert get("/status/nginx").status_code == 404


@pytest.mark.parametrize("listen", ["", "localhost", "127.0.0.1:0", "127.0.0.1:70000", "a:b"])
def test_bad_address(listen: str) -> None:
    """A listen address without a port is refused by name."""
    with pytest.raises(InvalidArgument, match="--listen"):
        status_page.serve(Config(), listen)
