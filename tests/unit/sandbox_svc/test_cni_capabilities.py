import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.cni import capabilities


def config() -> cri.PodSandboxConfig:
    return cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="pod", namespace="ns", uid="uid"))


def test_a_plain_pod_needs_nothing() -> None:
    """Without ports, limits, DNS and parent group only the (empty) annotations are offered."""
    found = capabilities.attachment("id", "/ns", config())
    assert (found.sandbox_id, found.netns, found.pod_name) == ("id", "/ns", "pod")
    assert found.capabilities == {capabilities.POD_ANNOTATIONS: {}}


def test_everything_a_pod_can_say() -> None:
    """Ports, limits, DNS, parent group and annotations arrive under their conventional names."""
    pod = config()
    pod.port_mappings.add(protocol=cri.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1")
    pod.port_mappings.add(container_port=80)
    pod.dns_config.servers.append("10.0.0.10")
    pod.linux.cgroup_parent = "/kubepods/podX"
    pod.annotations["kubernetes.io/ingress-bandwidth"] = "10M"
    pod.annotations["kubernetes.io/egress-bandwidth"] = "1.5k"
    found = capabilities.attachment("id", "/ns", pod).capabilities
    assert found == {
        "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"}],
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 4294967295,
            "egressRate": 1500,
            "egressBurst": 4294967295,
        },
        "dns": {"servers": ["10.0.0.10"], "searches": [], "options": []},
        "cgroupPath": "/kubepods/podX",
        capabilities.POD_ANNOTATIONS: dict(pod.annotations),
    }


@pytest.mark.parametrize("amount", ["", "fast", "10Q", "999", "2P", "-1M", "1e99", "1 M"])
def test_an_unreasonable_bandwidth_is_refused_by_name(amount: str) -> None:
    """A limit that is no quantity, below 1 kbit or above 1 Pbit fails the pod, naming the annotation."""
    pod = config()
    pod.annotations["kubernetes.io/egress-bandwidth"] = amount
    with pytest.raises(InvalidArgument, match=r"kubernetes\.io/egress-bandwidth"):
        capabilities.attachment("id", "/ns", pod)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("2e3", 2000),
        ("1500m", 2),
        (".5M", 500_000),
        ("1n", 1),
    ],
)
def test_quantities_are_kubernetes_s(text: str, value: int) -> None:
    """Decimal, binary and exponent suffixes mean what they mean in Kubernetes; fractions round up."""
    assert capabilities.quantity(text, "x") == value


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_refused(text: str) -> None:
    """No text fails in another way than InvalidArgument."""
    try:
        capabilities.quantity(text, "x")
    except InvalidArgument as error:
        assert str(error).startswith("x=")
