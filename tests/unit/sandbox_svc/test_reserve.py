"""A retry joins the creation it repeats."""

from concurrent.futures import Future

import pytest

from bulkhead.errors import Unavailable
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.reserve import Names, container_name, pod_name


def test_names_carry_what_makes_a_pod_unique() -> None:
    """Name, namespace, uid and attempt; name, pod and attempt."""
    metadata = cri.PodSandboxMetadata(name="web", namespace="default", uid="u", attempt=2)
    assert pod_name(metadata) == "web_default_u_2"
    assert container_name(cri.ContainerMetadata(name="app", attempt=1), "p") == "app_p_1"


def test_a_second_creation_joins_the_first() -> None:
    """Only the first call creates; both get its result, and so does one that comes later."""
    names, running = Names(), Future[str]()
    outcome, first = names.begin("n", lambda: running)
    joined, second = names.begin("n", lambda: pytest.fail("created twice"))
    assert (first, second) == (True, False)
    assert joined is outcome
    running.set_result("id")
    assert outcome.result(0) == "id"
    assert names.begin("n", lambda: pytest.fail("created again"))[0].result(0) == "id"


def test_a_failed_creation_frees_the_name_before_it_is_heard_of() -> None:
    """Whoever hears of the failure may try again at once."""
    names, running = Names(), Future[str]()
    outcome, _ = names.begin("n", lambda: running)
    again: list[bool] = []
    outcome.add_done_callback(lambda _: again.append(names.begin("n", Future)[1]))
    running.set_exception(Unavailable("no"))
    assert again == [True]
    with pytest.raises(Unavailable):
        outcome.result(0)


def test_a_creation_that_cannot_begin_frees_the_name() -> None:
    """An error before the work started leaves nothing behind."""
    names = Names()

    def fail() -> "Future[str]":
        raise RuntimeError("no thread")

    with pytest.raises(RuntimeError):
        names.begin("n", fail)
    assert names.begin("n", Future)[1]


def test_held_names_are_known_and_can_be_freed() -> None:
    """What was recovered holds its name until it is removed."""
    names = Names()
    names.hold("n", "id")
    outcome, first = names.begin("n", Future)
    assert (outcome.result(0), first) == ("id", False)
    names.free("n")
    names.free("n")
    assert names.begin("n", Future)[1]
