import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.cni import AddResult, Attachment, NetworkResult
from sandbox_svc.cni.model import addresses, prefer

V4, V4B, V6, V6B = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"


@pytest.mark.parametrize(
    ("preference", "main", "rest"),
    [
        ("ipv4", V4, (V6, V4B, V6B)),
        ("", V4, (V6, V4B, V6B)),
        ("ipv6", V6, (V4, V4B, V6B)),
        ("cni", V6, (V4, V4B, V6B)),
    ],
)
def test_the_preferred_family_comes_first(preference: str, main: str, rest: tuple[str, ...]) -> None:
    """ip_pref picks the first address of its family; "cni" keeps the plugins' order; the others keep theirs."""
    given_order = (V6, V4, V4B, V6B)
    result = AddResult(ips=prefer(given_order, preference))
    assert (result.ip, result.additional_ips) == (main, rest)


@given(st.lists(st.ip_addresses().map(str), unique=True), st.sampled_from(["ipv4", "ipv6", "cni", ""]))
def test_no_address_is_lost(ips: list[str], preference: str) -> None:
    """Whatever is preferred, the same addresses come out."""
    assert sorted(prefer(ips, preference)) == sorted(ips)


def test_addresses_of_other_interfaces_are_not_the_pod_s() -> None:
    """Only addresses of the interface asked for, or of none, count."""
    result = {
        "interfaces": [{"name": "br0"}, {"name": "eth0"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.0.0.2/24", "interface": 1},
            {"address": "fd00::2/64"},
            {"address": "10.0.0.9/24", "interface": 7},
        ],
    }
    assert addresses(result, "eth0") == ["10.0.0.2", "fd00::2"]


def test_old_results_are_understood() -> None:
    """Before 0.3.0 a result has ip4 and ip6 objects."""
    result = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}, "ip6": {"ip": "fd00::2/64"}}
    assert addresses(result, "eth0") == ["10.0.0.2", "fd00::2"]


def test_json_round_trip() -> None:
    """Attachment and AddResult come back from JSON equal to what they were."""
    attachment = Attachment("id", "/run/netns/cni-id", "ns", "pod", "uid", {"portMappings": [{"hostPort": 1}]})
    assert Attachment.from_json(attachment.to_json()) == attachment
    networks = (
        NetworkResult("eth0", {"name": "n", "plugins": []}, {"ips": []}, ("portmap",)),
        NetworkResult("eth1", {"name": "m"}),
    )
    result = AddResult(networks, (V4, V6))
    assert AddResult.from_json(result.to_json()) == result
    assert result.interfaces == ("eth0", "eth1")


def test_cni_args_are_kubernetes_s() -> None:
    """CNI_ARGS names the pod as every Kubernetes runtime does."""
    assert Attachment("id", "", "ns", "pod", "uid").args == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=uid"
    )
