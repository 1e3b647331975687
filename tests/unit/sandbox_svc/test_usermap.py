"""User maps of pods, plans of mounts that go through them, and what a runtime says that it can do."""

import os
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto import images_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import linux, runtimes, usermap
from sandbox_svc.netns import IdMapping


def pod(*mappings: cri.IDMapping, mode: "cri.NamespaceMode" = cri.POD) -> cri.PodSandboxConfig:
    users = cri.UserNamespace(mode=mode, uids=mappings, gids=mappings)
    context = cri.LinuxSandboxSecurityContext(namespace_options=cri.NamespaceOption(userns_options=users))
    return cri.PodSandboxConfig(linux=cri.LinuxPodSandboxConfig(security_context=context))


def mapping(inside: int = 0, outside: int = 1000, length: int = 100) -> cri.IDMapping:
    return cri.IDMapping(container_id=inside, host_id=outside, length=length)


def test_a_pod_without_user_namespace_has_no_map(tmp_path: Path) -> None:
    """Nothing asked for and mode NODE are the same."""
    assert usermap.of_pod(cri.PodSandboxConfig(), tmp_path) is None
    assert usermap.of_pod(pod(mode=cri.NODE), tmp_path) is None


def test_a_map_has_the_nodes_ids_of_root(tmp_path: Path) -> None:
    """The ids come from the request, the pin from us."""
    found = usermap.of_pod(pod(mapping()), tmp_path / "pin")
    assert found == usermap.UserMap(tmp_path / "pin", (IdMapping(0, 1000, 100),), (IdMapping(0, 1000, 100),))
    assert found.root == (1000, 1000)


@pytest.mark.parametrize("mappings", [[], [mapping(1)], [mapping(), mapping()], [mapping(length=0)]])
def test_impossible_mappings_are_refused(mappings: list[cri.IDMapping], tmp_path: Path) -> None:
    """No mapping, none for root, several, and an empty one are errors that name the field."""
    with pytest.raises(InvalidArgument, match="userns_options"):
        usermap.of_pod(pod(*mappings), tmp_path)


def test_without_a_map_a_plan_stays_as_it_is(tmp_path: Path) -> None:
    """Pods without user namespace are not touched."""
    plan = [images_pb2.Mount(type="bind", source="/x")]
    with usermap.mapped(plan, None, tmp_path / "stage") as found:
        assert found is plan
    assert list(tmp_path.iterdir()) == []


def test_a_plan_goes_through_clones_of_its_lower_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lower directory is replaced by a clone in the stage, the upper one is given to the pod's root."""
    given: list[tuple[str, int, int]] = []
    cloned: list[tuple[str, str]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((path, uid, gid)))
    monkeypatch.setattr(usermap, "_clone", lambda source, target, pin: cloned.append((source, str(target))))
    users = usermap.UserMap(tmp_path / "pin", (IdMapping(0, 7, 9),), (IdMapping(0, 8, 9),))
    options = ["lowerdir=/l2:/l1", "upperdir=/u", "workdir=/w", "index=off"]
    stage = tmp_path / "stage"
    with usermap.mapped([images_pb2.Mount(type="overlay", options=options)], users, stage) as [found]:
        assert list(found.options) == [f"lowerdir={stage}/0:{stage}/1", *options[1:]]
    assert cloned == [("/l2", f"{stage}/0"), ("/l1", f"{stage}/1")]
    assert given == [("/u", 7, 8)]
    assert not stage.exists()


def test_a_rootfs_that_is_no_overlay_cannot_be_mapped(tmp_path: Path) -> None:
    """Other plans are refused rather than handed out with wrong owners."""
    users = usermap.UserMap(tmp_path, (IdMapping(0, 7, 9),), (IdMapping(0, 8, 9),))
    with (
        pytest.raises(FailedPrecondition, match="overlay"),
        usermap.mapped([images_pb2.Mount(type="bind")], users, tmp_path / "s"),
    ):
        pass


def test_a_file_system_that_cannot_map_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's refusal becomes an error with the layer in it."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "mount_setattr: Invalid argument")

    monkeypatch.setattr(linux, "open_tree", refuse)
    (tmp_path / "pin").touch()
    with pytest.raises(FailedPrecondition, match="layer /l1 cannot be mapped"):
        usermap._clone("/l1", tmp_path / "clone", tmp_path / "pin")


def runtime(directory: Path, version: str, features: str) -> str:
    """Return a stand-in for an OCI runtime."""
    program = directory / "runtime"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\n{features}\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("version", "features", "maps", "recursive"),
    [
        (
            "runc version 1.5.2",
            """echo '{"mountOptions": ["rro"], "linux": {"mountExtensions": {"idmap": {"enabled": true}}}}'""",
            True,
            True,
        ),
        ("runc version 1.1.5", """echo '{"mountOptions": ["rro"], "linux": {}}'""", False, True),
        ("crun version 1.8.1", "exit 1", False, True),
        ("crun version 1.7", "exit 1", False, False),
        ("runc version 1.5.2", "echo nonsense", False, False),
    ],
)
def test_a_runtime_is_asked_what_it_can_do(
    version: str, features: str, maps: bool, recursive: bool, tmp_path: Path
) -> None:
    """`features` decides; a crun without that command is known by its version."""
    facts = runtimes.facts(runtime(tmp_path, version, features))
    assert (facts.id_mapped_mounts, facts.recursive_read_only) == (maps, recursive)
    assert facts.name == version.split()[0]


@pytest.mark.parametrize(
    ("features", "memory_policy", "scheduling"),
    [
        ("exit 1", False, False),
        ("""echo '{"ociVersionMax": "1.0.2-dev", "linux": {}}'""", False, False),
        ("""echo '{"ociVersionMax": "1.1.0+dev", "linux": {}}'""", False, True),
        ("""echo '{"ociVersionMax": "1.3.0", "linux": {"memoryPolicy": {"modes": ["MPOL_BIND"]}}}'""", True, True),
        ("""echo '{"ociVersionMax": 7, "linux": null}'""", False, False),
    ],
)
def test_what_a_runtime_would_leave_out(features: str, memory_policy: bool, scheduling: bool, tmp_path: Path) -> None:
    """Memory policies stand in `features`; I/O priorities and schedulers came with runtime-spec 1.1."""
    facts = runtimes.facts(runtime(tmp_path, "runc version 1.2.3", features))
    assert (facts.memory_policy, facts.scheduling) == (memory_policy, scheduling)
