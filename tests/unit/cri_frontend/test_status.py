"""Status as a function of what was seen, and what the proxy knows of methods and metadata."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.proto.runtime.v1 import api_pb2
from cri_frontend import headers, methods, status
from cri_frontend.status import Findings, merge


def told(**conditions: bool) -> api_pb2.StatusResponse:
    """Return what sandbox-svc answered, with those conditions."""
    answer = api_pb2.StatusResponse(info={"config": "{}"})
    for name, value in conditions.items():
        answer.status.conditions.add(type=name, status=value, reason="" if value else "Because")
    return answer


def conditions(findings: Findings, now: float) -> dict[str, Any]:
    return {condition.type: condition for condition in merge(findings, False, now).status.conditions}


def test_nothing_was_seen_yet() -> None:
    """Before sandbox-svc has answered, neither runtime nor network is ready, and the reason says so."""
    found = conditions(Findings(others={"ImageServiceReady": ""}), 1000.0)

    assert not found["RuntimeReady"].status
    assert found["RuntimeReady"].message == "sandbox-svc has not answered yet"
    assert not found["NetworkReady"].status
    assert found["ImageServiceReady"].status


def test_a_restart_of_sandbox_svc_leaves_the_node_ready() -> None:
    """For 30 s after its last answer the runtime counts as ready and the network stays as it was."""
    findings = Findings(told(NetworkReady=True), seen_at=1000.0, trouble="sandbox-svc does not answer: gone")
    within, after = conditions(findings, 1029.9), conditions(findings, 1030.1)

    assert within["RuntimeReady"].status
    assert not after["RuntimeReady"].status
    assert after["RuntimeReady"].reason == "SandboxServiceNotSeen"
    assert within["NetworkReady"].status
    assert after["NetworkReady"].status


def test_other_services_do_not_drain_the_node() -> None:
    """A dead image-svc is a condition of its own and changes neither of the kubelet's two."""
    findings = Findings(told(NetworkReady=True), 1000.0, "", {"ImageServiceReady": "image-svc is not running"})
    found = conditions(findings, 1001.0)

    assert found["RuntimeReady"].status
    assert found["NetworkReady"].status
    assert not found["ImageServiceReady"].status
    assert found["ImageServiceReady"].message == "image-svc is not running"


def test_what_sandbox_svc_says_of_itself_counts() -> None:
    """Its own RuntimeReady, and conditions that the frontend does not know, are handed on."""
    found = conditions(Findings(told(RuntimeReady=False, Odd=True), 1000.0, ""), 1001.0)

    assert (found["RuntimeReady"].status, found["RuntimeReady"].reason) == (False, "Because")
    assert found["Odd"].status


def test_info_is_for_those_who_ask() -> None:
    """Verbose answers carry sandbox-svc's info and the services' state; others carry none."""
    findings = Findings(told(), 1000.0, "", {"ImageServiceReady": ""})

    assert set(merge(findings, True, 1000.0).info) == {"config", "services"}
    assert not merge(findings, False, 1000.0).info
    assert findings.runtime is not None
    assert set(findings.runtime.info) == {"config"}


def test_version() -> None:
    """Version is the CRI's, whatever the kubelet asks for."""
    answer = status.version(api_pb2.VersionRequest(version="v1alpha2"))

    assert (answer.runtime_name, answer.runtime_api_version) == ("bulkhead", "v1")


def test_every_method_is_forwarded_or_answered() -> None:
    """Together the frontend's own answers and the forwarded methods are the whole CRI."""
    for service in ("RuntimeService", "ImageService"):
        names = {method.name for method in api_pb2.DESCRIPTOR.services_by_name[service].methods}
        forwarded = {method.name for method in methods.methods(service)}
        assert names - forwarded == (methods.LOCAL if service == "RuntimeService" else set())


def test_lists_of_methods_name_real_ones() -> None:
    """No name in the tables is misspelt, and nothing that changes something is repeated."""
    names = {method.name for service in ("RuntimeService", "ImageService") for method in methods.methods(service)}

    assert names >= methods.LONG
    assert names >= methods.READS
    assert not methods.LONG & methods.READS


@pytest.mark.parametrize("verb", ["Create", "Start", "Stop", "Remove", "Update", "Exec", "RunPod", "Pull", "Restore"])
def test_changes_are_never_repeated(verb: str) -> None:
    """Whatever a method is called that changes something, it is sent once."""
    for service in ("RuntimeService", "ImageService"):
        assert not [m.name for m in methods.methods(service) if m.name.startswith(verb) and m.repeatable]


@given(st.lists(st.tuples(st.sampled_from(["x-a", "user-agent", "grpc-timeout", ":path", "trace-bin"]), st.text())))
def test_keys_of_one_hop_stay_behind(pairs: list[tuple[str, str]]) -> None:
    """What gRPC set for the hop is dropped, what the caller set keeps its order and its repetitions."""
    assert headers.passed_on(pairs) == tuple(pair for pair in pairs if pair[0] in ("x-a", "trace-bin"))
