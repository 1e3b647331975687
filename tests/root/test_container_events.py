"""GetContainerEvents with real pods: their whole life, and what happened while sandbox-svc was dead."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.sandbox import Sandbox

pytestmark = pytest.mark.root

CREATED, STOPPED = cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STOPPED_EVENT
#: Seconds that a stop gives to calls that do not end.
GRACE = 2.0
STARTED, DELETED = cri.CONTAINER_STARTED_EVENT, cri.CONTAINER_DELETED_EVENT


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox-svc."""
    with Sandbox(number=94) as running:
        yield running


def collect(sandbox: Sandbox, last: tuple[str, int], timeout: float = 60) -> list[cri.ContainerEventResponse]:
    """Read a stream until the event of that subject and kind, and break it off."""
    stream = sandbox.stub().GetContainerEvents(cri.GetEventsRequest(), timeout=timeout)
    found = []
    for event in stream:
        found.append(event)
        if (event.container_id, event.container_event_type) == last:
            stream.cancel()
            return found
    raise AssertionError(f"the stream ended after {found}")


def test_a_life_in_events(sandbox: Sandbox) -> None:
    """Every step of a pod and its container arrives once, in order, with the statuses of that moment."""
    pods = sandbox.pods()
    config = pods.config("events")
    pod = pods.run(config)
    container = pods.start(pod, config, "main", "exit 3")
    pods.wait_exited(container)
    pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=60)
    pods.remove(pod)

    events = [event for event in collect(sandbox, (pod, DELETED)) if event.pod_sandbox_status.id == pod]

    assert [(event.container_id, event.container_event_type) for event in events] == [
        (pod, CREATED),
        (pod, STARTED),
        (container, CREATED),
        (container, STARTED),
        (container, STOPPED),
        (container, DELETED),
        (pod, STOPPED),
        (pod, DELETED),
    ]
    assert events[4].containers_statuses[0].exit_code == 3
    assert events[3].pod_sandbox_status.network.ip
    assert events[3].pod_sandbox_status.state == cri.SANDBOX_READY


def test_what_happened_while_the_service_was_dead(sandbox: Sandbox, tmp_path: Path) -> None:
    """An exit during the downtime is an event for the stream that comes after it."""
    pods = sandbox.pods()
    config = pods.config("events-dead")
    pod = pods.run(config)
    mounts = [cri.Mount(container_path="/marks", host_path=str(tmp_path))]
    container = pods.start(pod, config, "main", "until [ -e /marks/go ]; do sleep 0.05; done; exit 7", mounts=mounts)
    sandbox.kill()
    (tmp_path / "go").touch()
    sandbox.wait_shim_knows_exit(container)
    sandbox.start()

    last = collect(sandbox, (container, STOPPED))[-1]

    assert last.containers_statuses[0].exit_code == 7
    sandbox.pods().remove(pod)


def test_a_stop_ends_the_stream(sandbox: Sandbox) -> None:
    """An open stream does not keep the service from stopping at once."""
    for _ in range(3):
        stream = sandbox.stub().GetContainerEvents(cri.GetEventsRequest(), timeout=60)
        time.sleep(0.3)
        assert sandbox.service is not None
        began = time.monotonic()
        sandbox.service.terminate()
        assert sandbox.service.wait(30) == 0
        took = time.monotonic() - began
        with pytest.raises(Exception, match=r"stopping|Socket closed|UNAVAILABLE"):
            list(stream)
        sandbox.start()
        if took < GRACE:
            return
    pytest.fail(f"three stops in a row took {GRACE} s and more, as if they waited for the stream")
