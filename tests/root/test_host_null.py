"""A container without standard input leaves the host's null device alone."""

import os
from pathlib import Path

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.pods import Pods
from support.stack import Stack

pytestmark = pytest.mark.root


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_owner_of_the_null_device(registry: str, tmp_path: Path, runtime: str) -> None:
    """A container and an exec as another user neither own /dev/null on the host nor lose their empty input."""
    before = os.stat("/dev/null")
    nobody = cri.LinuxContainerSecurityContext(run_as_user=cri.Int64Value(value=65534))
    with Stack(registry, default=runtime, number=95) as stack:
        image = cri.ImageSpec(image=f"{registry}/busybox:1")
        stack.image_service().PullImage(cri.PullImageRequest(image=image), timeout=60)
        pods = Pods(stack.runtime_service(), f"{registry}/busybox:1", tmp_path)
        config = pods.config("null")
        pod = pods.run(config)
        linux = cri.LinuxContainerConfig(security_context=nobody)
        container = pods.start(pod, config, "main", "cat; cat /dev/stdin; sleep 1000", linux=linux)
        answer = pods.exec(container, "sh", "-c", "cat; cat /dev/stdin; id -u")

    after = os.stat("/dev/null")
    assert answer.stdout == b"65534\n"
    assert (
        (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode) == (0, 0, 0o20666)
    )
