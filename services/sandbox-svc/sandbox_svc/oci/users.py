"""Who the process is: user forms of requests and images, resolved against the rootfs's own passwd and group files.

Those files come from an image, so they are read with limits (CVE-2026-47262): 10 MiB a file, 64 KiB a line, and lines
that are no entry are skipped rather than read as user 0.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.image import image_config
from sandbox_svc.oci.model import ContainerInput, Json, RootfsUsers, SandboxInput

MAX_FILE = 10 << 20
MAX_LINE = 64 << 10
#: The largest id that runc accepts.
MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Account:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: frozenset[str]


def apply_to_sandbox(spec: Json, request: SandboxInput) -> None:
    """Set the pause process's user: that of the request, else the image's."""
    context = request.config.linux.security_context
    asked = _requested("", context)
    user = asked or image_config(request.image_config).user
    if user:
        uid, gid = resolve(user, request.users, "linux.security_context" if asked else "the image's User")
        spec["process"]["user"] = {"uid": uid, "gid": gid, "additionalGids": [gid]}
    elif context.supplemental_groups:
        spec["process"]["user"]["additionalGids"] = sorted(_checked_groups(context.supplemental_groups))


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Set the process's user and groups: Merge takes the user's groups from /etc/group, Strict does not."""
    context = request.config.linux.security_context
    image_user = image_config(request.image_config).user
    groups = _checked_groups(context.supplemental_groups)
    asked = _requested(context.run_as_username, context)
    user = asked or image_user
    found: Json = {"uid": 0, "gid": 0}
    if user:
        uid, gid = resolve(user, request.users, "linux.security_context" if asked else "the image's User")
        found = {"uid": uid, "gid": gid}
        groups.add(gid)
    if context.supplemental_groups_policy == cri.Merge:
        groups.add(found["gid"])
        groups |= groups_of((asked or image_user or "0").partition(":")[0], request.users)
    elif context.supplemental_groups_policy != cri.Strict:
        raise InvalidArgument(
            "linux.security_context.supplemental_groups_policy: "
            f"want Merge or Strict, got {context.supplemental_groups_policy}"
        )
    if groups:
        found["additionalGids"] = sorted(groups)
    spec["process"]["user"] = {**spec["process"]["user"], **found}


def resolve(user: str, files: RootfsUsers, field: str) -> tuple[int, int]:
    """Return uid and gid of `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid` (image-spec, config.md).

    A uid alone takes its group from /etc/passwd, or 0 where it is not there. Raises InvalidArgument naming the field.
    """
    name, colon, group = user.partition(":")
    if ":" in group or not name or (colon and not group):
        raise InvalidArgument(f"{field}: {user!r} is no user: want user, uid, or one of them with :group or :gid")
    uid = _number(name, field, user)
    account = None
    if uid is None:
        account = next((entry for entry in accounts(files) if entry.name == name), None)
        if account is None:
            raise InvalidArgument(f"{field}: the image's /etc/passwd has no user {name!r}")
        uid = account.uid
    if colon:
        return uid, _gid(group, files, field, user)
    if account is None:
        account = next((entry for entry in accounts(files) if entry.uid == uid), None)
    return uid, account.gid if account else 0


def groups_of(user: str, files: RootfsUsers) -> set[int]:
    """Return the groups that /etc/group lists a user in, by name or uid; none for a uid without a name."""
    name = user
    if _is_number(user):
        account = next((entry for entry in accounts(files) if entry.uid == int(user)), None)
        if account is None:
            return set()
        name = account.name
    return {group.gid for group in groups(files) if name in group.members and group.name != name}


def accounts(files: RootfsUsers) -> Iterator[Account]:
    """Yield the entries of /etc/passwd in order; lines that are none are skipped."""
    for fields in _lines(files.passwd, "/etc/passwd"):
        if len(fields) >= 4 and _is_id(fields[2]) and _is_id(fields[3]):
            yield Account(fields[0], int(fields[2]), int(fields[3]))


def groups(files: RootfsUsers) -> Iterator[Group]:
    """Yield the entries of /etc/group in order; lines that are none are skipped."""
    for fields in _lines(files.group, "/etc/group"):
        if len(fields) >= 3 and _is_id(fields[2]):
            members = fields[3].split(",") if len(fields) > 3 else []
            yield Group(fields[0], int(fields[2]), frozenset(filter(None, members)))


def _lines(text: bytes | None, name: str) -> Iterator[list[str]]:
    if text is None:
        return
    if len(text) > MAX_FILE:
        raise InvalidArgument(f"the image's {name} has more than {MAX_FILE} bytes")
    start = 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        if end - start > MAX_LINE:
            raise InvalidArgument(f"the image's {name} has a line of more than {MAX_LINE} bytes")
        line = text[start:end].strip()
        start = end + 1
        if line and not line.startswith(b"#"):
            yield line.decode("utf-8", "surrogateescape").split(":")


def _requested(username: str, context: "cri.LinuxContainerSecurityContext | cri.LinuxSandboxSecurityContext") -> str:
    """Return the user string of a security context, "" when it says nothing; a group needs a user beside it."""
    user = username or (str(context.run_as_user.value) if context.HasField("run_as_user") else "")
    if not context.HasField("run_as_group"):
        return user
    if not user:
        raise InvalidArgument("linux.security_context.run_as_group: needs run_as_user or run_as_username")
    return f"{user}:{context.run_as_group.value}"


def _gid(group: str, files: RootfsUsers, field: str, user: str) -> int:
    gid = _number(group, field, user)
    if gid is not None:
        return gid
    found = next((entry for entry in groups(files) if entry.name == group), None)
    if found is None:
        raise InvalidArgument(f"{field}: the image's /etc/group has no group {group!r}")
    return found.gid


def _number(text: str, field: str, user: str) -> int | None:
    """Return text as an id, None when it is a name; an id out of range is an error, not a name."""
    if not _is_number(text.removeprefix("-")):
        return None
    if not 0 <= int(text) <= MAX_ID:
        raise InvalidArgument(f"{field}: id {text} in {user!r} is not within 0 and {MAX_ID}")
    return int(text)


def _checked_groups(wanted: Iterable[int]) -> set[int]:
    found = set(wanted)
    for gid in found:
        if not 0 <= gid <= MAX_ID:
            raise InvalidArgument(f"linux.security_context.supplemental_groups: {gid} is not within 0 and {MAX_ID}")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20


def _is_id(text: str) -> bool:
    return _is_number(text) and int(text) <= MAX_ID
