"""Requests and images of any content: a spec comes out, or an error that is meant for the caller."""

import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import BulkheadError, Internal
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import RootfsUsers, RuntimeFacts
from sandbox_svc.oci.spec import container_spec, sandbox_spec
from support.specs import container_input, host_facts, sandbox_input

TEXT = st.one_of(
    st.text(max_size=6), st.sampled_from(["/a", "/dev", "ALL", "0", "33", "www", "net.a", "runtime/default"])
)
#: Integers of the field's own range; enums are open in proto3, but mostly within theirs.
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=4),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 4),
}


def fill(draw: st.DrawFn, message: Message, depth: int = 0) -> None:
    """Set some fields of a message, and of those within it, to anything that their types allow."""
    descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if depth > 4 or not draw(st.integers(0, 2)):
            continue
        target = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            target.update(draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        elif field.message_type and field.is_repeated:
            fill(draw, target.add(), depth + 1)
        elif field.message_type:
            target.SetInParent()
            fill(draw, target, depth + 1)
        elif field.is_repeated:
            target.extend(draw(st.lists(SCALARS[field.type], max_size=2)))
        else:
            setattr(message, field.name, draw(SCALARS[field.type]))


@st.composite
def containers(draw: st.DrawFn) -> cri.ContainerConfig:
    message = cri.ContainerConfig()
    fill(draw, message)
    return message


@st.composite
def pods(draw: st.DrawFn) -> cri.PodSandboxConfig:
    message = cri.PodSandboxConfig()
    fill(draw, message)
    return message


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
IMAGES = st.fixed_dictionaries(
    {},
    optional={
        "config": st.one_of(
            JSON,
            st.fixed_dictionaries({}, optional=dict.fromkeys(["Env", "Cmd", "Entrypoint", "User", "Volumes"], JSON)),
        )
    },
)
USERS = st.builds(RootfsUsers, st.none() | st.binary(max_size=60), st.none() | st.binary(max_size=60))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(containers(), pods(), IMAGES, USERS, st.booleans())
def test_any_container(
    config: cri.ContainerConfig, pod: cri.PodSandboxConfig, image: dict[str, Any], users: RootfsUsers, crun: bool
) -> None:
    """Any container of any pod from any image gives a spec that JSON can hold, or an error of the caller's."""
    request = container_input(
        config=config,
        sandbox_config=pod,
        image_config=image,
        users=users,
        facts=host_facts(apparmor=True, selinux=True),
        runtime=Runtime(enable_selinux=True, disable_hugetlb_controller=False),
        handler=RuntimeHandler(pod_annotations=("*",), container_annotations=("[a-z]*",)),
        runtime_facts=RuntimeFacts(recursive_read_only=True, seccomp_bpf_annotation=crun),
    )
    try:
        spec = container_spec(request)
    except BulkheadError as error:
        assert not isinstance(error, Internal)
    else:
        json.dumps(spec)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(pods(), IMAGES, USERS)
def test_any_pod(pod: cri.PodSandboxConfig, image: dict[str, Any], users: RootfsUsers) -> None:
    """Any pod with any pause image gives a spec that JSON can hold, or an error of the caller's."""
    try:
        spec = sandbox_spec(sandbox_input(config=pod, image_config=image, users=users))
    except BulkheadError as error:
        assert not isinstance(error, Internal)
    else:
        json.dumps(spec)
