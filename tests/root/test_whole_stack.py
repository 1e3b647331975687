"""What only a whole stack shows: one correlation id through the services, and credentials that reach a registry."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support import images
from support.pods import Pods
from support.registry import registry as run_registry
from support.stack import Stack
from support.token_server import TokenServer, token_server

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """A stack that logs JSON."""
    running = Stack(registry, number=96)
    running.write_config()
    text = running.config.read_text()
    running.config.write_text(text.replace('level = "debug"', 'level = "debug"\nformat = "json"'))
    try:
        running.start()
        yield running
    finally:
        running.__exit__()


def test_one_correlation_id(stack: Stack, registry: str, tmp_path: Path) -> None:
    """A call's id stands in the log lines of more than one service, each line being one JSON object."""
    image = cri.ImageSpec(image=f"{registry}/busybox:1")
    stack.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
    pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
    config = pods.config("correlated")
    pod = pods.run(config)
    pods.start(pod, config, "main", "sleep 1000")
    pods.remove(pod)

    loggers: dict[str, set[str]] = {}
    shared: list[set[str]] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not shared:
        # What stands behind the last line feed is still being written.
        for line in stack.log.split("\n")[:-1]:
            if line.startswith("{"):
                entry = json.loads(line)
                name = entry["logger"].partition(".")[0].replace("-", "_")
                loggers.setdefault(entry.get("correlation", ""), set()).add(name)
        loggers.pop("", None)
        shared = [names for names in loggers.values() if {"sandbox_svc", "image_svc"} <= names]
    assert shared, loggers


def test_token_authentication(stack: Stack, tmp_path: Path) -> None:
    """A registry that wants tokens serves an image to who has the password, by a token for that repository alone."""
    directory = Path(tempfile.mkdtemp(prefix="bhtok"))
    server = TokenServer("tester", "secret-word")
    with token_server(server, directory) as auth, run_registry(directory, auth=auth) as address:
        bearer = f"Bearer {server.token('repository:private/box:push,pull')}"
        images.Pusher(address, bearer).image("private/box", "1", images.busybox(User="7"))
        spec = cri.ImageSpec(image=f"{address}/private/box:1")
        service = stack.image_service()
        wrong = cri.AuthConfig(username="tester", password="wrong-word")
        with pytest.raises(grpc.RpcError) as refused:
            service.PullImage(cri.PullImageRequest(image=spec, auth=wrong), timeout=60)
        server.asked.clear()

        right = cri.AuthConfig(username="tester", password="secret-word")
        pulled = service.PullImage(cri.PullImageRequest(image=spec, auth=right), timeout=60)

    shutil.rmtree(directory)
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert address in (refused.value.details() or "")
    assert set(server.asked) == {"repository:private/box:pull"}
    status = service.ImageStatus(cri.ImageStatusRequest(image=spec), timeout=30).image
    assert (status.id, status.uid.value) == (pulled.image_ref, 7)
    assert "secret-word" not in stack.log
    assert "wrong-word" not in stack.log


def test_a_stop_behind_the_last_removal(registry: str, tmp_path: Path) -> None:
    """A stack that is stopped while the last pods' shims are leaving waits for them, and nothing of it goes on."""
    with Stack(registry, number=87) as stack:
        pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
        made = [pods.run(pods.config(f"last-{number}")) for number in range(4)]
        with ThreadPoolExecutor(len(made)) as removers:
            list(removers.map(pods.remove, made))
        assert stack.stop() == 0

        assert "nothing is left running" in stack.log
        assert not (stack.directory / "state").exists()
