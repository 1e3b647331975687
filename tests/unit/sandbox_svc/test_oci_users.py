"""Users and groups of a process, from requests, images and the image's own passwd and group files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import users
from sandbox_svc.oci.model import RootfsUsers
from sandbox_svc.oci.spec import container_spec, sandbox_spec
from support.specs import container_input, sandbox_input

FILES = RootfsUsers(
    passwd=b"# comment\nroot:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34:www:/:/bin/sh\nnum:x:notanumber:1::/:\n",
    group=b"root:x:0:\nwww:x:34:\nextra:x:500:www,root\nmore:x:501:www\nwww2:x:x:www\n",
)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("0", (0, 0)),
        ("33", (33, 34)),
        ("1000", (1000, 0)),
        ("www", (33, 34)),
        ("www:extra", (33, 500)),
        ("www:7", (33, 7)),
        ("1000:extra", (1000, 500)),
        ("1000:2000", (1000, 2000)),
    ],
)
def test_user_forms(user: str, expected: tuple[int, int]) -> None:
    """Each form that the image spec allows gives uid and gid."""
    assert users.resolve(user, FILES, "user") == expected


@pytest.mark.parametrize(
    "user", ["nobody", "www:nogroup", "", ":5", "a:b:c", "www:", "-1", "2147483648", "0:4294967296", "num"]
)
def test_wrong_users_are_refused(user: str) -> None:
    """A user that is not there, not whole or out of range is the request's fault, and the field is named."""
    with pytest.raises(InvalidArgument, match=r"^the\.field: "):
        users.resolve(user, FILES, "the.field")


def test_comment_lines_are_no_users() -> None:
    """A comment or a broken line is not taken for user 0."""
    assert [account.name for account in users.accounts(FILES)] == ["root", "www"]


def test_files_are_bounded() -> None:
    """A passwd file or a line beyond the limit is refused rather than read."""
    for passwd in (b"x" * (users.MAX_LINE + 1), b"root:x:0:0:::\n" * (users.MAX_FILE // 14 + 2)):
        with pytest.raises(InvalidArgument, match="/etc/passwd"):
            list(users.accounts(RootfsUsers(passwd=passwd)))


@given(st.binary(max_size=400), st.binary(max_size=400), st.text(max_size=20))
def test_any_bytes_parse_or_are_refused(passwd: bytes, group: bytes, user: str) -> None:
    """Whatever an image holds, the outcome is a user within range or InvalidArgument."""
    files = RootfsUsers(passwd=passwd, group=group)
    try:
        uid, gid = users.resolve(user, files, "user")
    except InvalidArgument:
        return
    assert 0 <= uid <= users.MAX_ID
    assert 0 <= gid <= users.MAX_ID
    assert all(0 <= found <= users.MAX_ID for found in users.groups_of(user, files))


def test_groups_are_merged_from_the_image() -> None:
    """Merge adds the user's groups of /etc/group and the primary group; Strict only the request's and the primary."""
    config = cri.ContainerConfig(command=["true"])
    context = config.linux.security_context
    context.run_as_username = "www"
    context.supplemental_groups.append(7)
    request = container_input(config=config, users=FILES)
    assert container_spec(request)["process"]["user"] == {"uid": 33, "gid": 34, "additionalGids": [7, 34, 500, 501]}
    context.supplemental_groups_policy = cri.Strict
    assert container_spec(request)["process"]["user"] == {"uid": 33, "gid": 34, "additionalGids": [7, 34]}


def test_a_group_needs_a_user() -> None:
    """run_as_group alone is refused, naming the field."""
    config = cri.ContainerConfig(command=["true"])
    config.linux.security_context.run_as_group.value = 5
    with pytest.raises(InvalidArgument, match="run_as_group"):
        container_spec(container_input(config=config))


def test_image_user_is_used_and_overridden() -> None:
    """The image's User counts where the request names none; a missing passwd leaves group 0."""
    image = {"config": {"User": "1234"}}
    assert container_spec(container_input(image_config=image))["process"]["user"]["uid"] == 1234
    config = cri.ContainerConfig(command=["true"])
    config.linux.security_context.run_as_user.value = 0
    assert container_spec(container_input(image_config=image, config=config))["process"]["user"]["uid"] == 0


def test_pause_runs_as_the_pod_asks() -> None:
    """A pod's run_as_user and run_as_group are the pause process's."""
    request = sandbox_input()
    request.config.linux.security_context.run_as_user.value = 5
    request.config.linux.security_context.run_as_group.value = 6
    assert sandbox_spec(request)["process"]["user"] == {"uid": 5, "gid": 6, "additionalGids": [6]}


def test_groups_out_of_range_are_refused() -> None:
    """A negative supplemental group is refused."""
    config = cri.ContainerConfig(command=["true"])
    config.linux.security_context.supplemental_groups.append(-1)
    with pytest.raises(InvalidArgument, match="supplemental_groups"):
        container_spec(container_input(config=config))
