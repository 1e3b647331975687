"""Images as volumes of containers, with real image-svc: read-only, by sub-path, and gone with the container."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from conformance.build import build
from support.images import Image, Layer, Pusher, busybox_layer
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root

#: A handler whose runtime maps the ids of mounts.
MAPPING_RUNC = """
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mapping.options]
BinaryName = "{runc}"
"""
BASE = (
    Layer().dir("data").file("data/a", "one\n", uid=7, gid=8).file("data/gone", "x").symlink("data/up", "/../../../etc")
)
TOP = Layer().file("data/b", "two\n").file("data/.wh.gone").dir("etc").file("etc/inside", "image\n")


@pytest.fixture(scope="module")
def stack(registry: str) -> Iterator[Stack]:
    """One stack, with an image of one layer and one of two."""
    pusher = Pusher(registry)
    pusher.image("volume", "1", Image([BASE.tar()]))
    pusher.image("volume", "2", Image([BASE.tar(), TOP.tar()]))
    pusher.image("box", "1", Image([busybox_layer()], {"Cmd": ["sh"]}))
    with Stack(registry, number=97, more=MAPPING_RUNC.format(runc=build("runc")["runc"])) as running:
        # A pod's own root, another user of the node, must reach its rootfs.
        running.directory.chmod(0o711)
        for name in ("volume:1", "volume:2", "box:1"):
            request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/{name}"))
            running.image_service().PullImage(request, timeout=60)
        yield running


def volume(registry: str, tag: str, path: str, sub_path: str = "") -> cri.Mount:
    image = cri.ImageSpec(image=f"{registry}/volume:{tag}")
    return cri.Mount(container_path=path, image=image, readonly=True, image_sub_path=sub_path)


def test_images_are_mounted_read_only(stack: Stack, registry: str, tmp_path: Path) -> None:
    """A container sees the layers merged, cannot write, keeps them when the image is removed, and leaves nothing."""
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path)
    config = pods.config("images")
    pod = pods.run(config)
    mounts = [
        volume(registry, "1", "/one"),
        volume(registry, "2", "/two"),
        volume(registry, "2", "/sub", "data"),
        volume(registry, "2", "/link", "data/up"),
    ]
    container = pods.start(pod, config, "main", "sleep 1000", mounts=mounts)

    def output(command: str) -> str:
        return pods.exec(container, "sh", "-c", command).stdout.decode()

    image = cri.ImageSpec(image=f"{registry}/volume:2")
    pulled = {
        tag: stack.image_service()
        .PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry}/volume:{tag}")), timeout=60)
        .image_ref
        for tag in "12"
    }
    stack.image_service().RemoveImage(cri.RemoveImageRequest(image=image), timeout=60)
    old = stack.kill("sandbox-svc")
    stack.wait_restarted("sandbox-svc", old)
    # What PullImage answers, also after a restart.
    shown = {
        mount.container_path: mount.image.image_ref for mount in pods.status(container).mounts if mount.image.image
    }
    assert shown == dict.fromkeys(("/two", "/sub", "/link"), pulled["2"]) | {"/one": pulled["1"]}
    assert output("cat /one/data/a /one/data/gone; cd /two/data; cat a b; ls") == "one\nxone\ntwo\na\nb\nup\n"
    assert output("cat /sub/a") == "one\n"
    # A symlink of the image leads nowhere outside it.
    assert output("cat /link/inside") == "image\n"
    assert pods.exec(container, "touch", "/two/x").exit_code != 0
    assert pods.exec(container, "touch", "/one/x").exit_code != 0
    pods.remove(pod)
    stack.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)


@pytest.mark.parametrize(
    ("tag", "sub_path", "says"),
    [("2", "none", "none"), ("2", "data/a", "no directory"), ("2", "../etc", "without"), ("9", "", "volume:9")],
)
def test_what_cannot_be_mounted_is_named(
    stack: Stack, registry: str, tmp_path: Path, tag: str, sub_path: str, says: str
) -> None:
    """The error begins with the word that the kubelet looks for, and nothing stays mounted."""
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path)
    config = pods.config("bad-image")
    pod = pods.run(config)
    with pytest.raises(grpc.RpcError, match=f"ImageVolumeMountFailed.*{says}"):
        pods.create(pod, config, "main", "true", mounts=[volume(registry, tag, "/x", sub_path)])
    assert "image-volumes" not in Path("/proc/self/mountinfo").read_text()
    pods.remove(pod)


def test_owners_in_a_pod_with_a_user_namespace(stack: Stack, registry: str, tmp_path: Path) -> None:
    """Files of an image that is a volume have the owners that the image says, in whatever ids the pod has."""
    pods = Pods(stack.runtime_service(), f"{registry}/box:1", tmp_path, "mapping")
    mapping = [cri.IDMapping(container_id=0, host_id=300_000, length=65_536)]
    users = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping))
    context = cri.LinuxSandboxSecurityContext(namespace_options=users)
    config = pods.config("mapped", linux=cri.LinuxPodSandboxConfig(security_context=context))
    pod = pods.run(config)
    container = pods.start(
        pod,
        config,
        "main",
        "sleep 1000",
        linux=cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=users)),
        mounts=[volume(registry, "1", "/one"), volume(registry, "2", "/two"), volume(registry, "2", "/sub", "data")],
    )
    shown = pods.exec(container, "stat", "-c", "%u:%g", "/one", "/one/data/a", "/two/data/a", "/two/data/b", "/sub/b")
    assert shown.stdout.decode().split() == ["0:0", "7:8", "7:8", "0:0", "0:0"]
    for path in ("/one/data/x", "/two/x", "/sub/x"):
        assert b"Read-only" in pods.exec(container, "touch", path).stderr
    pods.remove(pod)
    # Unmounting comes behind the answer.
    deadline = time.monotonic() + 60
    while f"{stack.directory}/state/io.bulkhead/image-volumes" in Path("/proc/self/mountinfo").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
