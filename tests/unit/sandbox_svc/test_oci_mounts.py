"""Mounts of containers and pause containers."""

import dataclasses
from typing import Any

import pytest

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import Json, RuntimeFacts, SandboxFiles
from sandbox_svc.oci.spec import container_spec, image_volumes, needed_directories, sandbox_spec
from support.specs import TableHost, container_input, host_facts, sandbox_input


def with_mount(**fields: Any) -> cri.ContainerConfig:
    config = cri.ContainerConfig(command=["true"])
    config.mounts.add(**{"container_path": "/m", "host_path": "/h"} | fields)
    return config


def at(spec: Json, destination: str) -> Json:
    found: list[Json] = [mount for mount in spec["mounts"] if mount["destination"] == destination]
    assert len(found) == 1, destination
    return found[0]


def test_ids_of_a_mount_need_a_runtime_that_maps_them() -> None:
    """One that does not know of such mounts would show the files with the node's owners."""
    request = container_input(config=with_mount(uidMappings=[cri.IDMapping(host_id=5, length=1)]))
    with pytest.raises(InvalidArgument, match=r"mounts\[0\]\.uidMappings"):
        container_spec(dataclasses.replace(request, runtime_facts=RuntimeFacts(id_mapped_mounts=False)))
    able = dataclasses.replace(request, runtime_facts=RuntimeFacts(id_mapped_mounts=True))
    assert at(container_spec(able), "/m")["uidMappings"] == [{"containerID": 0, "hostID": 5, "size": 1}]


def test_pod_files_are_mounted_unless_the_request_does() -> None:
    """hostname, hosts, resolv.conf and shm of the pod come in; the request's own /etc/hosts wins."""
    spec = container_spec(container_input(config=with_mount(container_path="/etc/hosts")))
    assert at(spec, "/etc/hosts")["source"] == "/h"
    assert at(spec, "/etc/hostname")["source"] == "/pod/hostname"
    assert at(spec, "/dev/shm")["source"] == "/pod/shm"
    assert at(container_spec(container_input(files=SandboxFiles())), "/dev/shm")["type"] == "tmpfs"


def test_pod_files_follow_a_read_only_rootfs() -> None:
    """With a read-only rootfs the pod's files are read-only too, shared memory is not."""
    config = cri.ContainerConfig(command=["true"])
    config.linux.security_context.readonly_rootfs = True
    spec = container_spec(container_input(config=config))
    assert spec["root"]["readonly"] is True
    assert "ro" in at(spec, "/etc/hosts")["options"]
    assert "rw" in at(spec, "/dev/shm")["options"]


def test_shared_memory_of_the_node() -> None:
    """Sharing the node's IPC means the node's /dev/shm."""
    config = cri.ContainerConfig(command=["true"])
    config.linux.security_context.namespace_options.ipc = cri.NODE
    assert at(container_spec(container_input(config=config)), "/dev/shm")["source"] == "/dev/shm"
    request = sandbox_input()
    request.config.linux.security_context.namespace_options.ipc = cri.NODE
    assert at(sandbox_spec(request), "/dev/shm")["source"] == "/dev/shm"


def test_shallow_mounts_come_first() -> None:
    """A mount never hides a deeper one of the same request."""
    config = with_mount(container_path="/a/b/c")
    config.mounts.add(container_path="/a", host_path="/h")
    config.mounts.add(container_path="/a/b/", host_path="/h")
    order = [mount["destination"] for mount in container_spec(container_input(config=config))["mounts"]]
    assert order.index("/a") < order.index("/a/b/") < order.index("/a/b/c")


def test_a_mounted_dev_replaces_everything_below() -> None:
    """A request that mounts /dev gets no /dev/pts or /dev/mqueue over it."""
    spec = container_spec(container_input(config=with_mount(container_path="/dev/"), files=SandboxFiles()))
    assert [mount["destination"] for mount in spec["mounts"] if mount["destination"].startswith("/dev")] == ["/dev/"]


@pytest.mark.parametrize(
    ("propagation", "actual", "option", "rootfs"),
    [
        (cri.PROPAGATION_PRIVATE, "private", "rprivate", None),
        (cri.PROPAGATION_HOST_TO_CONTAINER, "shared", "rslave", "rslave"),
        (cri.PROPAGATION_HOST_TO_CONTAINER, "slave", "rslave", "rslave"),
        (cri.PROPAGATION_BIDIRECTIONAL, "shared", "rshared", "rshared"),
    ],
)
def test_propagation(propagation: int, actual: str, option: str, rootfs: str | None) -> None:
    """Propagation is an option of the mount, and the rootfs must propagate as far."""
    facts = host_facts(host=TableHost(mounts={"/h": actual}))
    spec = container_spec(container_input(config=with_mount(propagation=propagation), facts=facts))
    assert at(spec, "/m")["options"] == ["rbind", option, "rw"]
    assert spec["linux"].get("rootfsPropagation") == rootfs


@pytest.mark.parametrize(
    ("propagation", "actual"),
    [
        (cri.PROPAGATION_HOST_TO_CONTAINER, "private"),
        (cri.PROPAGATION_BIDIRECTIONAL, "private"),
        (cri.PROPAGATION_BIDIRECTIONAL, "slave"),
    ],
)
def test_propagation_needs_a_mount_that_propagates(propagation: int, actual: str) -> None:
    """A source on a mount that cannot propagate is refused, naming the field and the mount's kind."""
    facts = host_facts(host=TableHost(mounts={"/h": actual}))
    with pytest.raises(InvalidArgument, match=rf"mounts\[0\]\.propagation: /h is on a {actual} mount"):
        container_spec(container_input(config=with_mount(propagation=propagation), facts=facts))


def test_slave_does_not_undo_shared() -> None:
    """A HostToContainer mount beside a Bidirectional one leaves the rootfs shared, in either order."""
    facts = host_facts(host=TableHost(mounts={"/h": "shared"}))
    for first, second in ((1, 2), (2, 1)):
        config = with_mount(propagation=first)
        config.mounts.add(container_path="/m2", host_path="/h", propagation=second)
        assert container_spec(container_input(config=config, facts=facts))["linux"]["rootfsPropagation"] == "rshared"


def test_recursive_read_only() -> None:
    """rro is given where runtime and mount allow it, and refused with the kubelet's word where not."""
    able = RuntimeFacts(recursive_read_only=True)
    config = with_mount(readonly=True, recursive_read_only=True)
    assert at(container_spec(container_input(config=config, runtime_facts=able)), "/m")["options"][-1] == "rro"
    with pytest.raises(InvalidArgument, match=r"^RROUnsupported"):
        container_spec(container_input(config=config))
    with pytest.raises(InvalidArgument, match="not readonly"):
        container_spec(container_input(config=with_mount(recursive_read_only=True), runtime_facts=able))
    shared = with_mount(readonly=True, recursive_read_only=True, propagation=cri.PROPAGATION_HOST_TO_CONTAINER)
    facts = host_facts(host=TableHost(mounts={"/h": "shared"}))
    with pytest.raises(InvalidArgument, match="PRIVATE"):
        container_spec(container_input(config=shared, runtime_facts=able, facts=facts))


@pytest.mark.parametrize(("wish", "option"), [("", "ro"), ("IfPossible", "rro"), ("Enabled", "rro")])
def test_read_only_as_recursive(wish: str, option: str) -> None:
    """treat_ro_mounts_as_rro turns plain read-only mounts into recursive ones."""
    request = container_input(
        config=with_mount(readonly=True),
        handler=RuntimeHandler(treat_ro_mounts_as_rro=wish),
        runtime_facts=RuntimeFacts(recursive_read_only=True),
    )
    assert at(container_spec(request), "/m")["options"][-1] == option
    incapable = dataclasses.replace(request, runtime_facts=RuntimeFacts())
    if wish == "Enabled":
        with pytest.raises(InvalidArgument, match="treat_ro_mounts_as_rro"):
            container_spec(incapable)
    else:
        assert at(container_spec(incapable), "/m")["options"][-1] == "ro"


def test_sources_are_resolved_and_made() -> None:
    """A symlinked source is followed; a missing one is listed to be made, and an error where it was not."""
    host = TableHost(links={"/h": "/real"}, missing={"/gone"})
    config = with_mount()
    config.mounts.add(container_path="/n", host_path="/gone")
    request = container_input(config=config, facts=host_facts(host=host))
    assert needed_directories(request) == ("/gone",)
    with pytest.raises(InvalidArgument, match=r"mounts\[1\]\.host_path: /gone"):
        container_spec(request)
    host.missing.clear()
    assert at(container_spec(request), "/m")["source"] == "/real"


@pytest.mark.parametrize("field", ["container_path", "host_path"])
def test_relative_paths_are_refused(field: str) -> None:
    """A relative path names its field."""
    with pytest.raises(InvalidArgument, match=rf"mounts\[0\]\.{field}"):
        container_spec(container_input(config=with_mount(**{field: "rel"})))


def test_image_volumes() -> None:
    """Volumes of the image that no mount covers get a directory of their own, always the same; or are ignored."""
    image: Json = {"config": {"Volumes": {"/data": {}, "rel": {}, "/m": {}}}}
    request = container_input(config=with_mount(), image_config=image)
    found = image_volumes(request)
    assert [volume.container_path for volume in found] == ["/data", "/rel"]
    assert found == image_volumes(request)
    assert needed_directories(request) == tuple(volume.host_path for volume in found)
    assert at(container_spec(request), "/data")["source"] == found[0].host_path
    assert image_volumes(dataclasses.replace(request, runtime=Runtime(ignore_image_defined_volumes=True))) == ()


def test_mounted_images() -> None:
    """A mount of an image takes what was mounted for it; anything wrong about it carries the kubelet's word."""
    config = cri.ContainerConfig(command=["true"])
    config.mounts.add(container_path="/i", readonly=True, image=cri.ImageSpec(image="volume:1"))
    request = container_input(config=config, image_mounts={0: "/images/1"})
    assert at(container_spec(request), "/i") == {
        "destination": "/i",
        "type": "bind",
        "source": "/images/1",
        "options": ["rbind", "rprivate", "ro"],
    }
    assert needed_directories(request) == ()
    with pytest.raises(InvalidArgument, match=r"^ImageVolumeMountFailed"):
        container_spec(container_input(config=config))
    config.mounts[0].readonly = False
    with pytest.raises(InvalidArgument, match=r"^ImageVolumeMountFailed"):
        container_spec(request)


def test_cgroup_mount() -> None:
    """The cgroup tree is read-only unless the handler says so; the node's own keeps the node's options."""
    options = at(container_spec(container_input()), "/sys/fs/cgroup")["options"]
    assert options[-1] == "ro"
    assert "nsdelegate" not in options
    writable = container_spec(container_input(handler=RuntimeHandler(cgroup_writable=True)))
    assert at(writable, "/sys/fs/cgroup")["options"][-1] == "rw"
    hybrid = container_spec(container_input(facts=host_facts(cgroup_mode="hybrid")))
    assert at(hybrid, "/sys/fs/cgroup")["options"][-1] == "nsdelegate"


def test_sys_is_bound_on_the_nodes_network_in_a_user_namespace() -> None:
    """sysfs cannot be mounted by a user namespace that does not own the network namespace."""
    request = sandbox_input(netns_path="")
    options = request.config.linux.security_context.namespace_options
    options.network = cri.NODE
    options.userns_options.mode = cri.POD
    options.userns_options.uids.add(host_id=100000, container_id=0, length=65536)
    options.userns_options.gids.add(host_id=100000, container_id=0, length=65536)
    mount = at(sandbox_spec(request), "/sys")
    assert (mount["type"], mount["source"]) == ("bind", "/sys")
    assert {"rbind", "rprivate", "rro"} <= set(mount["options"])
