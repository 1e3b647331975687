"""CDI devices, block I/O and RDT classes in a container's spec."""

from dataclasses import replace

import pytest

from bulkhead.config.model import Runtime
from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import cdi
from sandbox_svc.oci.model import ContainerInput, Device, DeviceNode, Edits, Json, RuntimeFacts
from sandbox_svc.oci.spec import container_spec
from support.specs import TableHardware, container_input, host_facts

GPU = "vendor.com/gpu=0"
SLOW: Json = {"weight": 20}


def asking(pod: dict[str, str] | None = None, own: dict[str, str] | None = None, **changes: object) -> ContainerInput:
    request = container_input(
        hardware=TableHardware(classes={"slow": SLOW}, rdt_classes={"gold", "silver"}, denied_to_pods={"silver"}),
        **changes,
    )
    request.sandbox_config.annotations.update(pod or {})
    request.config.annotations.update(own or {})
    return request


BLOCKIO, RDT = "blockio.resources.beta.kubernetes.io/", "rdt.resources.beta.kubernetes.io/"


@pytest.mark.parametrize(
    ("pod", "own"),
    [
        ({BLOCKIO + "pod": "slow"}, {}),
        ({BLOCKIO + "pod": "other", BLOCKIO + "container.c": "slow"}, {}),
        ({BLOCKIO + "container.c": "other", BLOCKIO + "pod": "x"}, {"io.kubernetes.cri.blockio-class": "slow"}),
    ],
)
def test_block_io_class(pod: dict[str, str], own: dict[str, str]) -> None:
    """The container's annotation wins over the pod's for it, and that over the pod's for all."""
    assert container_spec(asking(pod, own))["linux"]["resources"]["blockIO"] == SLOW


def test_no_class_is_asked_for() -> None:
    """Another container's class, and an empty one, leave the spec as it is."""
    spec = container_spec(asking({BLOCKIO + "container.d": "slow", RDT + "container.d": "gold", RDT + "pod": ""}))
    assert "blockIO" not in spec["linux"]["resources"]
    assert "intelRdt" not in spec["linux"]


def test_rdt_class() -> None:
    """The class is the spec's closID; one that pods may not ask for is refused to them alone."""
    assert container_spec(asking({RDT + "pod": "gold"}))["linux"]["intelRdt"] == {"closID": "gold"}
    own = {"io.kubernetes.cri.rdt-class": "silver"}
    assert container_spec(asking({}, own))["linux"]["intelRdt"] == {"closID": "silver"}
    with pytest.raises(FailedPrecondition, match="RDT class 'silver' of container c"):
        container_spec(asking({RDT + "container.c": "silver"}))


def test_rdt_root_class() -> None:
    """The class that every process is in from the start needs no word in the spec."""
    request = replace(asking({RDT + "pod": "system/default"}), hardware=TableHardware(rdt_classes={"system/default"}))
    assert "intelRdt" not in container_spec(request)["linux"]


@pytest.mark.parametrize("key", [BLOCKIO + "pod", RDT + "pod"])
def test_classes_that_nobody_configured(key: str) -> None:
    """A class fails the container where there are none, unless the option says to go without."""
    request = replace(asking({key: "slow"}), hardware=TableHardware())
    with pytest.raises(FailedPrecondition, match=r"class 'slow' of container c"):
        container_spec(request)
    ignoring = Runtime(ignore_blockio_not_enabled_errors=True, ignore_rdt_not_enabled_errors=True)
    container_spec(replace(request, runtime=ignoring))
    with pytest.raises(FailedPrecondition):  # where there are classes, one that is not among them is an error
        container_spec(replace(asking({key: "unknown"}), runtime=ignoring))


def with_device(edits: Edits, **changes: object) -> ContainerInput:
    nodes = {
        "/dev/gpu0": Device("/dev/gpu0", "c", 195, 3, 0o660, 0, 44),
        "/run/fifo": Device("/run/fifo", "p", 0, 0, 0o600),
    }
    request = container_input(hardware=TableHardware(devices={GPU: edits}, nodes=nodes), **changes)
    request.config.CDI_devices.add(name=GPU)
    return request


def test_device_node_is_completed_from_the_host() -> None:
    """Type, numbers and mode come from the host's node, the owner from the container's user (SPEC.md, deviceNodes)."""
    request = with_device(Edits(device_nodes=(DeviceNode("/dev/card", "/dev/gpu0"),)))
    request.config.linux.security_context.run_as_user.value = 1000
    linux = container_spec(request)["linux"]
    assert linux["devices"] == [
        {"path": "/dev/card", "type": "c", "major": 195, "minor": 3, "fileMode": 0o660, "uid": 1000}
    ]
    assert linux["resources"]["devices"][-1] == {
        "allow": True, "type": "c", "major": 195, "minor": 3, "access": "rwm"
    }  # fmt: skip


def test_device_node_that_says_all() -> None:
    """A node that states type and major needs no node on the host; permissions none gives no access."""
    node = DeviceNode("/dev/x", type="b", major=8, minor=1, permissions="none", uid=0, gid=7)
    linux = container_spec(with_device(Edits(device_nodes=(node,))))["linux"]
    assert linux["devices"] == [{"path": "/dev/x", "type": "b", "major": 8, "minor": 1, "uid": 0, "gid": 7}]
    assert linux["resources"]["devices"][-1] == {"allow": True, "type": "b", "major": 8, "minor": 1}


def test_fifo() -> None:
    """A FIFO is made without numbers and needs no cgroup rule."""
    before = container_spec(container_input())["linux"]["resources"]["devices"]
    linux = container_spec(with_device(Edits(device_nodes=(DeviceNode("/f", "/run/fifo"),))))["linux"]
    assert linux["devices"] == [{"path": "/f", "type": "p", "major": 0, "minor": 0, "fileMode": 0o600}]
    assert linux["resources"]["devices"] == before


@pytest.mark.parametrize("node", [DeviceNode("/dev/none"), DeviceNode("/dev/gpu0", type="b")])
def test_device_node_that_cannot_be(node: DeviceNode) -> None:
    """A node that is not there, or is of another type than its spec says, fails the container and is named."""
    with pytest.raises(FailedPrecondition, match=node.path):
        container_spec(with_device(Edits(device_nodes=(node,))))


def test_edits_of_everything_else() -> None:
    """Variables replace those of their name, mounts those at their place, hooks and groups are added."""
    edits = Edits(
        env=("PATH=/cdi", "NEW=1"),
        net_devices=(("eth7", "net0"),),
        hooks=(("createContainer", {"path": "/bin/hook", "args": ["hook"]}),),
        mounts=(
            {"destination": "/dev/shm", "source": "/s", "options": ["bind"]},
            {"destination": "/a", "source": "/b"},
        ),
        rdt={"closID": "gpu"},
        groups=(0, 44, 44),
    )
    spec = container_spec(with_device(edits))
    assert [entry for entry in spec["process"]["env"] if entry.startswith(("PATH=", "NEW="))] == ["PATH=/cdi", "NEW=1"]
    assert spec["linux"]["netDevices"] == {"eth7": {"name": "net0"}}
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/hook", "args": ["hook"]}]}
    assert spec["linux"]["intelRdt"] == {"closID": "gpu"}
    assert spec["process"]["user"]["additionalGids"].count(44) == 1
    shm = [mount for mount in spec["mounts"] if mount["destination"] == "/dev/shm"]
    assert shm == [{"destination": "/dev/shm", "source": "/s", "options": ["bind"]}]
    depths = [mount["destination"].rstrip("/").count("/") for mount in spec["mounts"]]
    assert depths == sorted(depths)


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        ({"options": ["rbind", "ro"]}, ["rbind", "ro", "ridmap"]),
        ({"type": "bind"}, ["idmap"]),
        ({"type": "bind", "options": ["bind", "idmap"]}, ["bind", "idmap"]),
    ],
)
def test_mounts_in_a_user_namespace(mount: Json, options: list[str]) -> None:
    """In a pod with a user namespace, bind mounts of a device have their owners mapped."""
    spec: Json = {"linux": {"namespaces": [{"type": "user"}]}, "mounts": []}
    edits = Edits(mounts=({"destination": "/a", "source": "/b", **mount},))
    cdi.apply(spec, edits, TableHardware())
    assert spec["mounts"][0]["options"] == options


def test_devices_are_asked_for_by_field_and_annotation() -> None:
    """Fields come first, then annotations in order of their keys; nothing is asked for twice."""
    config = cri.ContainerConfig()
    config.CDI_devices.add(name="v.com/c=1")
    config.CDI_devices.add(name="v.com/c=1")
    config.annotations.update({"cdi.k8s.io/b": "v.com/c=3", "cdi.k8s.io/a": "v.com/c=2,v.com/c=1", "x": "v.com/c=4"})
    assert cdi.requested(config) == ["v.com/c=1", "v.com/c=2", "v.com/c=3"]


@pytest.mark.parametrize("value", ["", "gpu0", "v.com/c=1,", "v.com/c", "/c=1", "v.com/c=-", "v.com/c= 1"])
def test_names_that_are_not_full(value: str) -> None:
    """A name without vendor, class or device is refused with the annotation that holds it."""
    config = cri.ContainerConfig(annotations={"cdi.k8s.io/a": value})
    with pytest.raises(InvalidArgument, match=r"annotations\[cdi.k8s.io/a\]"):
        cdi.requested(config)


def test_only_the_containers_own_words_ask_for_devices() -> None:
    """Labels of an image and annotations of a pod give a container no device."""
    request = with_device(Edits(env=("CDI=1",)))
    del request.config.CDI_devices[:]
    request.sandbox_config.annotations["cdi.k8s.io/a"] = GPU
    labelled = replace(request, image_config={"config": {"Labels": {"cdi.k8s.io/a": GPU}}})
    assert "CDI=1" not in container_spec(labelled)["process"]["env"]


def test_unknown_and_ignored_devices() -> None:
    """A device that no spec defines fails the container; enable_cdi = false lets it run without."""
    request = container_input()
    request.config.CDI_devices.add(name="vendor.com/gpu=9")
    with pytest.raises(NotFound, match=r"vendor\.com/gpu=9"):
        container_spec(request)
    container_spec(replace(request, runtime=Runtime(enable_cdi=False)))


def test_network_devices_need_a_runtime_that_knows_them() -> None:
    """A runtime that would leave a network device out is refused with the device's name."""
    request = with_device(Edits(net_devices=(("eth7", "net0"),)))
    with pytest.raises(FailedPrecondition, match=r"vendor\.com/gpu=0 bring network devices"):
        container_spec(replace(request, runtime_facts=RuntimeFacts(net_devices=False)))


def test_privileged_containers_keep_the_devices_nodes_once() -> None:
    """A node that a privileged container has already is replaced by the device's."""
    request = with_device(Edits(device_nodes=(DeviceNode("/dev/gpu0", permissions="r"),)))
    request.sandbox_config.linux.security_context.privileged = True
    request.config.linux.security_context.privileged = True
    request.facts.host.nodes["/dev"] = (Device("/dev/gpu0", "c", 195, 3, 0o666),)  # type: ignore[attr-defined]
    spec = container_spec(replace(request, facts=host_facts(host=request.facts.host)))
    assert [node["fileMode"] for node in spec["linux"]["devices"] if node["path"] == "/dev/gpu0"] == [0o660]
