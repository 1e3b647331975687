"""What exec plugins read and write."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.nri_exec.conf import Plugin
from sandbox_svc.nri_exec.messages import Subject, parse, request

SPEC: dict[str, Any] = {
    "annotations": {"qos.class": "ls", "run.oci.seccomp_bpf_data": "AAAA"},
    "linux": {
        "resources": {"cpu": {"shares": 2}},
        "cgroupsPath": "default/redis",
        "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/x"}],
    },
}


def read(plugin: Plugin, state: str, subject: Subject, results: Any = ()) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request(plugin, state, subject, results))
    return found


def test_what_a_plugin_reads() -> None:
    """All members of the interface; new namespaces are those of the process, the compiled filter is nobody's."""
    subject = Subject("redis", "pod", 44, SPEC, {"app": "cache"})
    earlier = {"plugin": "first", "version": "0.1", "error": ""}
    assert read(Plugin("konfine", {"reserved": [0]}), "create", subject, [earlier]) == {
        "version": "0.1",
        "state": "create",
        "id": "redis",
        "sandboxID": "pod",
        "pid": 44,
        "spec": {
            "resources": {"cpu": {"shares": 2}},
            "cgroupsPath": "default/redis",
            "namespaces": {
                "pid": "/proc/44/ns/pid",
                "mount": "/proc/44/ns/mnt",
                "network": "/run/netns/x",
                "net": "/run/netns/x",
            },
            "annotations": {"qos.class": "ls"},
        },
        "conf": {"reserved": [0]},
        "labels": {"app": "cache"},
        "results": [earlier],
    }


def test_of_what_is_gone_only_the_names_are_left() -> None:
    """Without a process and a bundle there is an id to go by; resources are always there, as Go writes them."""
    found = read(Plugin("konfine"), "delete", Subject("redis", "pod", -1, {}))
    assert found == {
        "version": "0.1",
        "state": "delete",
        "id": "redis",
        "sandboxID": "pod",
        "pid": -1,
        "spec": {"resources": {}},
    }


def test_a_result_of_the_skeleton() -> None:
    """Later plugins see the members that the interface has, and no others."""
    answer = parse(b'{"plugin": "k", "version": "0.1", "error": "", "metadata": {"a": "b"}, "more": 1}\n', "konfine")
    assert answer.result == {"plugin": "k", "version": "0.1", "error": "", "metadata": {"a": "b"}}
    assert answer.cgroups_path == ""


def test_a_result_of_the_readme() -> None:
    """It names no plugin, and asks for another cgroup."""
    text = b'{"version": "0.1", "state": "create", "id": "redis", "pid": 1234, "cgroupsPath": "qos-ls/default/redis"}'
    answer = parse(text, "konfine")
    assert answer.result == {"plugin": "konfine", "version": "0.1", "error": ""}
    assert answer.cgroups_path == "qos-ls/default/redis"


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (b" \n", "it wrote no result"),
        (b"{", "its result is no JSON"),
        (b"[" * 100_000, "its result is no JSON"),
        (b"[]", "its result is no JSON object"),
        (b'{"error": "the set is full"}', "^the set is full$"),
        (b'{"error": 1}', "error of its result is 1, expected a string"),
        (b'{"metadata": {"a": 1}}', "metadata of its result is not an object of strings"),
        (b'{"cgroupsPath": "a\\u0000b"}', "cgroupsPath of its result contains a NUL byte"),
    ],
)
def test_what_is_no_result(output: bytes, complaint: str) -> None:
    """The error says what is wrong, or what the plugin says is."""
    with pytest.raises(ValueError, match=complaint):
        parse(output, "konfine")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_output_crashes_the_parser(output: bytes) -> None:
    """Whatever a plugin writes, it is a result or an error."""
    try:
        answer = parse(output, "konfine")
    except ValueError:
        return
    assert set(answer.result) >= {"plugin", "version", "error"}
