"""Requests that can never work are refused with the field, the value and what was expected."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import validate


def a_pod() -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web", uid="u1", namespace="default"))


def a_container() -> cri.ContainerConfig:
    return cri.ContainerConfig(metadata=cri.ContainerMetadata(name="app"), image=cri.ImageSpec(image="busybox"))


def test_ordinary_requests_pass() -> None:
    """What a kubelet sends is taken."""
    pod = a_pod()
    pod.hostname, pod.log_directory = "web-0", "/var/log/pods/default_web_u1"
    pod.linux.sysctls["net.ipv4.ip_local_port_range"] = "1024 65000"
    pod.linux.cgroup_parent = "/kubepods/burstable/podu1"
    pod.dns_config.servers.append("10.0.0.10")
    pod.port_mappings.add(protocol=cri.TCP, container_port=80, host_port=8080, host_ip="::1")
    validate.pod(pod)
    container = a_container()
    container.log_path, container.working_dir = "app/0.log", "/srv"
    container.envs.add(key="KEY", value="wert=ü".encode())
    container.mounts.add(container_path="/data", host_path="/srv/data")
    container.devices.add(container_path="/dev/x", host_path="/dev/null", permissions="rwm")
    validate.container(container)


def number(config: Any, *path: str) -> None:
    """Set an enum of the security context to a number that no release has."""
    where = config.linux.security_context
    for name in path[:-1]:
        where = getattr(where, name)
    setattr(where, path[-1], 99)


POD_ERRORS: list[tuple[str, Callable[[cri.PodSandboxConfig], object]]] = [
    ("metadata", lambda c: c.ClearField("metadata")),
    ("metadata.name", lambda c: setattr(c.metadata, "name", "")),
    ("metadata.name", lambda c: setattr(c.metadata, "name", "x" * 300)),
    ("metadata.name", lambda c: setattr(c.metadata, "name", "../x")),
    ("metadata.namespace", lambda c: setattr(c.metadata, "namespace", "")),
    ("metadata.uid", lambda c: setattr(c.metadata, "uid", "u\0")),
    ("metadata.uid", lambda c: setattr(c.metadata, "uid", "u;K8S_POD_NAME=other")),
    ("metadata.name", lambda c: setattr(c.metadata, "name", "web;K8S_POD_NAMESPACE=kube-system")),
    ("linux.security_context.seccomp.profile_type", lambda c: number(c, "seccomp", "profile_type")),
    ("linux.security_context.namespace_options.pid", lambda c: number(c, "namespace_options", "pid")),
    (
        "linux.security_context.namespace_options.userns_options.mode",
        lambda c: number(c, "namespace_options", "userns_options", "mode"),
    ),
    ("port_mappings[0].protocol", lambda c: c.port_mappings.add(container_port=1, protocol=9)),
    ("hostname", lambda c: setattr(c, "hostname", "a b")),
    ("hostname", lambda c: setattr(c, "hostname", "h" * 65)),
    ("log_directory", lambda c: setattr(c, "log_directory", "var/log")),
    ("labels", lambda c: c.labels.update(big="x" * 1_000_000)),
    ("annotations", lambda c: c.annotations.update({"a\0b": "x"})),
    ("dns_config.servers", lambda c: c.dns_config.servers.append("1.1.1.1\nnameserver 6.6.6.6")),
    ("dns_config.options", lambda c: c.dns_config.options.append("")),
    ("port_mappings[0].container_port", lambda c: c.port_mappings.add(container_port=0)),
    ("port_mappings[0].host_port", lambda c: c.port_mappings.add(container_port=1, host_port=70000)),
    ("port_mappings[0].host_ip", lambda c: c.port_mappings.add(container_port=1, host_ip="localhost")),
    ("port_mappings[0].protocol", lambda c: c.port_mappings.add(container_port=1, protocol=9)),
    ("sysctls", lambda c: c.linux.sysctls.update({"kernel/../x": "1"})),
    ("sysctls", lambda c: c.linux.sysctls.update({"": "1"})),
    ("cgroup_parent", lambda c: setattr(c.linux, "cgroup_parent", "/a/../../b")),
]


@pytest.mark.parametrize(("field", "spoil"), POD_ERRORS)
def test_a_bad_pod_is_refused_by_field(field: str, spoil: Callable[[cri.PodSandboxConfig], object]) -> None:
    """The message names the field that is wrong."""
    config = a_pod()
    spoil(config)
    with pytest.raises(InvalidArgument) as caught:
        validate.pod(config)
    assert f"config.{field}" in str(caught.value) or f"config.linux.{field}" in str(caught.value)
    assert "expected" in str(caught.value)
    assert len(str(caught.value)) < 500


CONTAINER_ERRORS: list[tuple[str, Callable[[cri.ContainerConfig], object]]] = [
    ("metadata", lambda c: c.ClearField("metadata")),
    ("metadata.name", lambda c: setattr(c.metadata, "name", "a\nb")),
    ("image.image", lambda c: c.ClearField("image")),
    ("working_dir", lambda c: setattr(c, "working_dir", "srv")),
    ("log_path", lambda c: setattr(c, "log_path", "../../etc/passwd")),
    ("log_path", lambda c: setattr(c, "log_path", "/etc/passwd")),
    ("envs[0].key", lambda c: c.envs.add(key="A=B", value=b"x")),
    ("envs[0].value", lambda c: c.envs.add(key="A", value=b"\xff\xfe")),
    ("envs[0]", lambda c: c.envs.add(key="A", value=b"x" * 200_000)),
    ("mounts[0].container_path", lambda c: c.mounts.add(container_path="data", host_path="/x")),
    ("mounts[0].host_path", lambda c: c.mounts.add(container_path="/data", host_path="x")),
    ("mounts[0].host_path", lambda c: c.mounts.add(container_path="/data")),
    ("mounts[0].propagation", lambda c: c.mounts.add(container_path="/data", host_path="/x", propagation=7)),
    (
        "mounts[0].recursive_read_only",
        lambda c: c.mounts.add(container_path="/data", host_path="/x", recursive_read_only=True),
    ),
    ("stop_signal", lambda c: setattr(c, "stop_signal", 999)),
    ("linux.security_context.seccomp.profile_type", lambda c: number(c, "seccomp", "profile_type")),
    ("linux.security_context.apparmor.profile_type", lambda c: number(c, "apparmor", "profile_type")),
    ("linux.security_context.namespace_options.network", lambda c: number(c, "namespace_options", "network")),
    ("devices[0].permissions", lambda c: c.devices.add(container_path="/d", host_path="/d", permissions="rx")),
    ("devices[0].host_path", lambda c: c.devices.add(container_path="/d", host_path="d")),
    ("args[1]", lambda c: c.args.extend(["ok", "not\0ok"])),
    ("command[0]", lambda c: c.command.append("\0")),
]


@pytest.mark.parametrize(("field", "spoil"), CONTAINER_ERRORS)
def test_a_bad_container_is_refused_by_field(field: str, spoil: Callable[[cri.ContainerConfig], object]) -> None:
    """The message names the field that is wrong."""
    config = a_container()
    spoil(config)
    with pytest.raises(InvalidArgument) as caught:
        validate.container(config)
    # A repeated string is named without its index.
    assert f"config.{field}" in str(caught.value) or f"config.{field.partition('[')[0]} " in str(caught.value)
    assert "expected" in str(caught.value)


def test_grace_ports_and_commands_have_limits() -> None:
    """Negative graces, ports out of range and empty commands are refused."""
    validate.grace(0)
    validate.ports([1, 65535])
    validate.command(["true"])
    refused: tuple[Callable[[], object], ...] = (
        lambda: validate.grace(-1),
        lambda: validate.ports([80, 0]),
        lambda: validate.ports([65536]),
        lambda: validate.command([]),
        lambda: validate.command([""]),
        lambda: validate.command(["sh", "a\0b"]),
        lambda: validate.streaming(tty=True, stderr=True, some=True),
        lambda: validate.streaming(tty=False, stderr=False, some=False),
    )
    for call in refused:
        with pytest.raises(InvalidArgument):
            call()


@given(st.binary(max_size=300))
def test_any_message_is_judged_or_taken(data: bytes) -> None:
    """Whatever parses as a configuration either passes or is InvalidArgument, never another error."""
    checks: tuple[tuple[Any, Any], ...] = (
        (cri.PodSandboxConfig(), validate.pod),
        (cri.ContainerConfig(), validate.container),
    )
    for config, check in checks:
        try:
            config.ParseFromString(data)
        except DecodeError:  # not a message: gRPC refuses it before us
            continue
        with contextlib.suppress(InvalidArgument):
            check(config)
