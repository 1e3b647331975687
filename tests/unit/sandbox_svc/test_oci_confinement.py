"""Namespaces, capabilities, seccomp, AppArmor, SELinux, privileged containers."""

import json
from typing import Any

import pytest

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import apparmor_default, bpf
from sandbox_svc.oci.apparmor import DEFAULT_PROFILE
from sandbox_svc.oci.base import DEFAULT_CAPABILITIES
from sandbox_svc.oci.model import Device, Json, RuntimeFacts
from sandbox_svc.oci.seccomp import default_profile, parse_profile
from sandbox_svc.oci.spec import container_spec, relabelled, sandbox_spec
from support.specs import TableHost, container_input, host_facts, pod, sandbox_input

Profile = cri.SecurityProfile


def plain() -> cri.ContainerConfig:
    return cri.ContainerConfig(command=["true"])


def namespaces(spec: Json) -> dict[str, str | None]:
    return {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]}


def test_pause_gets_namespaces_of_its_own() -> None:
    """The pause container makes the pod's namespaces, and enters the network namespace made for it."""
    assert namespaces(sandbox_spec(sandbox_input())) == {
        "pid": None,
        "ipc": None,
        "uts": None,
        "mount": None,
        "network": "/run/netns/pod",
    }


def test_pause_of_a_host_pod_shares_the_nodes() -> None:
    """A pod on the node's network, PIDs and IPC has neither those namespaces nor a UTS namespace, nor our sysctls."""
    request = sandbox_input(netns_path="")
    options = request.config.linux.security_context.namespace_options
    options.network = options.pid = options.ipc = cri.NODE
    spec = sandbox_spec(request)
    assert namespaces(spec) == {"mount": None}
    assert "sysctl" not in spec["linux"]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (cri.POD, "/proc/42/ns/pid"),
        (cri.NODE, "/proc/42/ns/pid"),
        (cri.CONTAINER, None),
        (cri.TARGET, "/proc/77/ns/pid"),
    ],
)
def test_pid_modes(mode: cri.NamespaceMode, expected: str | None) -> None:
    """A container joins the pod's PIDs, has its own, or joins another container's."""
    config = plain()
    config.linux.security_context.namespace_options.pid = mode
    assert namespaces(container_spec(container_input(config=config, target_pid=77)))["pid"] == expected


def test_a_target_that_does_not_run_is_refused() -> None:
    """Joining a container that has no process names the field."""
    config = plain()
    config.linux.security_context.namespace_options.pid = cri.TARGET
    with pytest.raises(InvalidArgument, match="target_id"):
        container_spec(container_input(config=config))


def test_cgroup_namespace_only_on_v2_and_unprivileged() -> None:
    """cgroup v2 hides the tree above the container; v1 and privileged containers see it."""
    assert "cgroup" in namespaces(container_spec(container_input()))
    assert "cgroup" not in namespaces(container_spec(container_input(facts=host_facts(cgroup_mode="v1"))))
    config, sandbox = plain(), pod()
    config.linux.security_context.privileged = sandbox.linux.security_context.privileged = True
    assert "cgroup" not in namespaces(container_spec(container_input(config=config, sandbox_config=sandbox)))


def mapped(options: cri.NamespaceOption) -> None:
    options.userns_options.mode = cri.POD
    options.userns_options.uids.add(host_id=100000, container_id=0, length=65536)
    options.userns_options.gids.add(host_id=200000, container_id=0, length=65536)


def test_user_namespace() -> None:
    """A pod with mappings gets a user namespace; containers join it and mount the pod's files mapped."""
    request = sandbox_input(userns_path="/run/userns/pod")
    mapped(request.config.linux.security_context.namespace_options)
    spec = sandbox_spec(request)
    assert namespaces(spec)["user"] == "/run/userns/pod"
    assert spec["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 200000, "size": 65536}]
    assert "net.ipv4.ping_group_range" not in spec["linux"]["sysctl"]
    config = plain()
    mapped(config.linux.security_context.namespace_options)
    spec = container_spec(container_input(config=config, sandbox_config=request.config))
    assert namespaces(spec)["user"] == "/proc/42/ns/user"
    hosts = next(mount for mount in spec["mounts"] if mount["destination"] == "/etc/hosts")
    assert hosts["uidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]


def test_user_namespace_must_be_whole_and_the_pods() -> None:
    """Mappings that are missing, several, empty or other than the pod's are refused."""
    config = plain()
    mapped(config.linux.security_context.namespace_options)
    with pytest.raises(InvalidArgument, match="differ from those of the pod"):
        container_spec(container_input(config=config))
    for change in ("none", "two", "empty", "node"):
        request = sandbox_input()
        options = request.config.linux.security_context.namespace_options
        mapped(options)
        if change == "none":
            del options.userns_options.uids[:]
        elif change == "two":
            options.userns_options.uids.add(host_id=1, container_id=1, length=1)
        elif change == "empty":
            options.userns_options.uids[0].length = 0
        else:
            options.userns_options.mode = cri.NODE
        with pytest.raises(InvalidArgument, match="userns_options"):
            sandbox_spec(request)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], set(DEFAULT_CAPABILITIES)),
        (["net_admin"], [], {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"}),
        ([], ["CHOWN"], set(DEFAULT_CAPABILITIES) - {"CAP_CHOWN"}),
        (["ALL"], [], {"CAP_CHOWN", "CAP_SYS_ADMIN"}),
        (["ALL"], ["SYS_ADMIN"], {"CAP_CHOWN"}),
        (["CHOWN"], ["all"], {"CAP_CHOWN"}),
        ([], ["ALL"], set()),
    ],
)
def test_capabilities(add: list[str], drop: list[str], expected: set[str]) -> None:
    """ALL counts before single names; ALL of us is all that we have ourselves; ambient sets stay empty."""
    config = plain()
    config.linux.security_context.capabilities.add_capabilities.extend(add)
    config.linux.security_context.capabilities.drop_capabilities.extend(drop)
    found = container_spec(container_input(config=config))["process"]["capabilities"]
    assert {name: set(members) for name, members in found.items()} == dict.fromkeys(
        ("bounding", "effective", "permitted"), expected
    )


def privileged(**changes: Any) -> Json:
    config, sandbox = plain(), pod()
    config.linux.security_context.privileged = sandbox.linux.security_context.privileged = True
    config.linux.security_context.masked_paths.append("/proc/kcore")
    config.linux.security_context.seccomp.profile_type = Profile.RuntimeDefault
    host = TableHost(nodes={"/dev": (Device("/dev/sda", "b", 8, 0, 0o660),)})
    return container_spec(
        container_input(**{"config": config, "sandbox_config": sandbox, "facts": host_facts(host=host)} | changes)
    )


def test_privileged() -> None:
    """A privileged container has all our capabilities and devices, and nothing masked or filtered."""
    spec = privileged()
    assert spec["process"]["capabilities"]["bounding"] == ["CAP_CHOWN", "CAP_SYS_ADMIN"]
    assert [device["path"] for device in spec["linux"]["devices"]] == ["/dev/sda"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(spec["linux"])
    options = {mount["destination"]: mount["options"] for mount in spec["mounts"]}
    assert "rw" in options["/sys"]
    assert "rw" in options["/sys/fs/cgroup"]


def test_privileged_without_host_devices() -> None:
    """A handler may keep the devices back, and with a second option allow them all the same."""
    spec = privileged(handler=RuntimeHandler(privileged_without_host_devices=True))
    assert "devices" not in spec["linux"]
    assert spec["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    both = RuntimeHandler(
        privileged_without_host_devices=True, privileged_without_host_devices_all_devices_allowed=True
    )
    assert privileged(handler=both)["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


def test_privileged_needs_a_privileged_pod() -> None:
    """A privileged container in a pod that was not announced as privileged is refused."""
    with pytest.raises(InvalidArgument, match="privileged"):
        privileged(sandbox_config=pod())


def seccomp_of(config: cri.ContainerConfig, **changes: Any) -> Json | None:
    found: Json | None = container_spec(container_input(config=config, **changes))["linux"].get("seccomp")
    return found


def test_seccomp_choice() -> None:
    """No profile without a wish, unless unset_seccomp_profile has one; Unconfined means none."""
    assert seccomp_of(plain()) is None
    default = Runtime(unset_seccomp_profile="runtime/default")
    assert seccomp_of(plain(), runtime=default) is not None
    config = plain()
    config.linux.security_context.seccomp.profile_type = Profile.Unconfined
    assert seccomp_of(config, runtime=default) is None
    config = plain()
    config.linux.security_context.seccomp_profile_path = "unconfined"
    assert seccomp_of(config, runtime=default) is None


def test_seccomp_localhost() -> None:
    """A profile file is taken with the members that runtime-spec knows; a missing one names the field."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [],
        "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG"}],
    }
    host = TableHost(files={"/p.json": json.dumps(profile).encode()})
    config = plain()
    config.linux.security_context.seccomp.profile_type = Profile.Localhost
    config.linux.security_context.seccomp.localhost_ref = "localhost//p.json"
    assert seccomp_of(config, facts=host_facts(host=host)) == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG"}],
    }
    with pytest.raises(InvalidArgument, match=r"localhost_ref: /p\.json"):
        seccomp_of(config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": 1}',
        '{"defaultAction": "x", "syscalls": [{}]}',
        '{"defaultAction":"x","flags":1}',
    ],
)
def test_broken_profiles_are_refused(text: str) -> None:
    """A profile that is no profile names its file."""
    with pytest.raises(InvalidArgument, match=r"profile /p\.json"):
        parse_profile(text.encode(), "/p.json")


def test_seccomp_must_be_possible() -> None:
    """Asking for a filter on a kernel without seccomp fails; asking for none does not."""
    config = plain()
    config.linux.security_context.seccomp.profile_type = Profile.RuntimeDefault
    with pytest.raises(FailedPrecondition, match="seccomp"):
        seccomp_of(config, facts=host_facts(seccomp=False))
    config.linux.security_context.seccomp.profile_type = Profile.Unconfined
    assert seccomp_of(config, facts=host_facts(seccomp=False)) is None
    config.linux.security_context.seccomp.localhost_ref = "x"
    with pytest.raises(InvalidArgument, match="localhost_ref"):
        seccomp_of(config)


def test_default_profile_grows_with_capabilities() -> None:
    """What a capability needs is allowed only with it."""

    def allowed(*capabilities: str) -> set[str]:
        rules = default_profile(capabilities, "x86_64", (6, 1))["syscalls"]
        return {
            name
            for rule in rules
            if "args" not in rule and rule["action"] == "SCMP_ACT_ALLOW"
            for name in rule["names"]
        }

    assert "mount" not in allowed()
    assert {"mount", "clone3", "setns"} <= allowed("CAP_SYS_ADMIN")
    assert allowed("CAP_SYS_TIME") - allowed() == {"settimeofday", "stime", "clock_settime", "clock_settime64"}
    assert "arch_prctl" in allowed()
    old = default_profile((), "aarch64", (4, 4))["syscalls"]
    names = {name for rule in old for name in rule["names"]}
    assert "ptrace" not in names
    assert "cacheflush" in names


def test_compiled_filter_is_handed_to_crun_alone() -> None:
    """crun gets the compiled filter beside the section; an annotation of the pod never replaces it."""
    config = plain()
    config.linux.security_context.seccomp.profile_type = Profile.RuntimeDefault
    config.annotations[bpf.ANNOTATION] = "forged"
    handler = RuntimeHandler(container_annotations=("run.oci.*",))
    crun = RuntimeFacts(name="crun", seccomp_bpf_annotation=True)
    spec = container_spec(container_input(config=config, handler=handler, runtime_facts=crun))
    assert spec["annotations"][bpf.ANNOTATION] == bpf.annotation(spec["linux"]["seccomp"], "x86_64")
    assert bpf.ANNOTATION not in container_spec(container_input(config=config, handler=handler))["annotations"]


def test_apparmor() -> None:
    """The default profile where AppArmor is on, a loaded one by name, none for Unconfined and privileged."""
    facts = host_facts(apparmor=True, host=TableHost(profiles={"mine"}))

    def profile(config: cri.ContainerConfig) -> object:
        return container_spec(container_input(config=config, facts=facts))["process"].get("apparmorProfile")

    assert profile(plain()) == DEFAULT_PROFILE
    config = plain()
    config.linux.security_context.apparmor_profile = "localhost/mine"
    assert profile(config) == "mine"
    config.linux.security_context.apparmor.profile_type = Profile.Unconfined
    assert profile(config) is None
    config.linux.security_context.apparmor.profile_type = Profile.Localhost
    config.linux.security_context.apparmor.localhost_ref = "other"
    with pytest.raises(InvalidArgument, match="other"):
        profile(config)


def test_apparmor_must_be_possible() -> None:
    """Asking for a profile where AppArmor is off fails instead of running unconfined."""
    config = plain()
    assert "apparmorProfile" not in container_spec(container_input(config=config))["process"]
    config.linux.security_context.apparmor.profile_type = Profile.RuntimeDefault
    with pytest.raises(FailedPrecondition, match="AppArmor"):
        container_spec(container_input(config=config))


def test_apparmor_turned_off() -> None:
    """With disable_apparmor a container runs without a profile, and one that names a profile is refused."""
    facts, runtime = host_facts(apparmor=True, host=TableHost(profiles={"mine"})), Runtime(disable_apparmor=True)
    config = plain()
    request = container_input(config=config, facts=facts, runtime=runtime)
    assert "apparmorProfile" not in container_spec(request)["process"]
    for text in ("unconfined", "runtime/default", "localhost/mine"):
        config.linux.security_context.apparmor_profile = text
        if text == "unconfined":
            assert "apparmorProfile" not in container_spec(request)["process"]
        else:
            with pytest.raises(FailedPrecondition, match="AppArmor"):
                container_spec(request)


def test_default_apparmor_profile() -> None:
    """The profile names itself, its daemon, and stands without the distribution's includes."""
    bare = apparmor_default.profile("mine", lambda _path: False)
    assert "@{PROC}=/proc/" in bare
    assert "#include" not in bare
    assert f"profile {DEFAULT_PROFILE} " in bare
    assert "peer=mine," in bare
    full = apparmor_default.profile("mine", lambda _path: True)
    assert full.startswith("abi <abi/3.0>,\n#include <tunables/global>\n")
    assert "#include <abstractions/base>" in full


def test_selinux_labels() -> None:
    """Labels come from the options, then from the pod's, then from the defaults, with a level of the pod's own."""
    facts, runtime = host_facts(selinux=True), Runtime(enable_selinux=True)
    sandbox = sandbox_spec(sandbox_input(facts=facts, runtime=runtime))
    label = sandbox["process"]["selinuxLabel"]
    assert label.startswith("system_u:system_r:container_t:s0:c")
    config = plain()
    config.linux.security_context.selinux_options.type = "spc_t"
    spec = container_spec(container_input(config=config, facts=facts, runtime=runtime, sandbox_process_label=label))
    assert spec["process"]["selinuxLabel"] == label.replace("container_t", "spc_t")
    assert spec["linux"]["mountLabel"] == label.replace("system_r:container_t", "object_r:container_file_t")
    assert "selinuxLabel" not in privileged(facts=facts, runtime=runtime)["process"]


#: A container's label as containerd writes it: the request's parts over the pod's, whose categories stay.
POD_LABEL = "system_u:system_r:container_t:s0:c12,c900"


@pytest.mark.parametrize(
    ("asked", "process", "mounts"),
    [
        ({}, POD_LABEL, "system_u:object_r:container_file_t:s0:c12,c900"),
        (
            {"level": "s0:c1,c2"},
            "system_u:system_r:container_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0:c1,c2",
        ),
        (
            {"user": "u", "role": "r", "type": "spc_t", "level": "s0-s1:c0.c1023"},
            "u:r:spc_t:s0-s1:c0.c1023",
            "u:object_r:container_file_t:s0-s1:c0.c1023",
        ),
    ],
)
def test_selinux_recorded(asked: dict[str, str], process: str, mounts: str) -> None:
    """Every part of a label that is asked for is in it, and the file label follows its level."""
    facts, runtime = host_facts(selinux=True), Runtime(enable_selinux=True)
    config = plain()
    config.linux.security_context.selinux_options.CopyFrom(cri.SELinuxOption(**asked))
    spec = container_spec(container_input(config=config, facts=facts, runtime=runtime, sandbox_process_label=POD_LABEL))
    assert (spec["process"]["selinuxLabel"], spec["linux"]["mountLabel"]) == (process, mounts)


def test_selinux_of_virtual_machines() -> None:
    """A runtime that boots a machine around the pod runs it under the machines' type (containerd, Kata)."""
    facts, runtime = host_facts(selinux=True), Runtime(enable_selinux=True)
    handler = RuntimeHandler(runtime_type="io.containerd.kata.v2")
    request = container_input(facts=facts, runtime=runtime, handler=handler, sandbox_process_label=POD_LABEL)
    assert container_spec(request)["process"]["selinuxLabel"] == POD_LABEL.replace("container_t", "container_kvm_t")
    sandbox = sandbox_spec(sandbox_input(facts=facts, runtime=runtime, handler=handler))
    assert ":container_kvm_t:" in sandbox["process"]["selinuxLabel"]


def test_what_is_relabelled() -> None:
    """Volumes that ask for it, the pod's own files and its shared memory get the mount label; the node's do not."""
    config = plain()
    config.mounts.add(container_path="/a", host_path="/volume/a", selinux_relabel=True)
    config.mounts.add(container_path="/b", host_path="/volume/b")
    config.mounts.add(container_path="/i", image=cri.ImageSpec(image="x"), selinux_relabel=True)
    host = TableHost(links={"/volume/a": "/real/a"})
    request = container_input(config=config, facts=host_facts(host=host))
    labelled: Json = {"linux": {"mountLabel": "a:b:c:d"}}
    assert relabelled(request, labelled) == ["/real/a", "/pod/hostname", "/pod/hosts", "/pod/resolv.conf", "/pod/shm"]
    config.linux.security_context.namespace_options.ipc = cri.NODE
    assert "/dev/shm" not in relabelled(request, labelled)
    assert relabelled(request, {"linux": {}}) == []


def test_selinux_off() -> None:
    """Without SELinux there are no labels, and a wrong level is refused all the same."""
    assert "mountLabel" not in container_spec(container_input())["linux"]
    config = plain()
    config.linux.security_context.selinux_options.level = "s0:c1,c2"
    container_spec(container_input(config=config))
    config.linux.security_context.selinux_options.level = "high"
    with pytest.raises(InvalidArgument, match="level"):
        container_spec(container_input(config=config))
