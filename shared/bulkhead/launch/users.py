"""The system users that services run as."""

import grp
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from bulkhead.errors import FailedPrecondition

#: The group whose members may call the services, as cri-frontend, image-svc and people do; sandbox-svc alone is not
#: theirs.
GROUP = "bulkhead"
#: What adduser(8) gives to system users of whom nothing else is said.
_NOGROUP = 65534


@dataclass(frozen=True)
class User:
    """One user as the kernel and the file system know it."""

    name: str
    uid: int
    gid: int
    home: str = "/nonexistent"


@dataclass(frozen=True)
class Users:
    """Root, the group of callers, and a user for each unprivileged service."""

    group: int
    by_service: dict[str, User]

    def of(self, service: str) -> User:
        """Return the service's user; root for one that has none of its own."""
        return self.by_service.get(service, ROOT)


ROOT = User("root", 0, 0, "/root")


def look_up(names: Mapping[str, str]) -> Users:
    """Return the users of the configuration; FailedPrecondition gives the commands that make the missing ones."""
    found, commands = dict[str, User](), list[str]()
    try:
        group = grp.getgrnam(GROUP).gr_gid
    except KeyError:
        group = -1
        commands.append(f"groupadd --system {GROUP}")
    for service, name in names.items():
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            commands.append(
                f"useradd --system --user-group --no-create-home --home-dir /nonexistent "
                f"--shell /usr/sbin/nologin {name}"
            )
        else:
            found[service] = User(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
    if commands:
        lines = "\n  ".join(commands)
        raise FailedPrecondition(
            "users that Bulkhead's services run as are missing; make them with\n  "
            f"{lines}\nor, where Bulkhead's sysusers.d file is installed, with\n  systemd-sysusers"
        )
    _refuse_shared(found)
    return Users(group, found)


def _refuse_shared(users: Mapping[str, User]) -> None:
    """Two services under one user could trace each other and read each other's files.

    Under one group they could call what the other may: sandbox-svc, which makes containers.
    """
    owner: dict[int, str] = {0: "root"}
    groups: dict[int, str] = {0: "root", _NOGROUP: "nobody"}
    for service, user in users.items():
        if user.uid in owner:
            raise FailedPrecondition(
                f"bulkhead.users: {service} would run as {user.name!r} (uid {user.uid}), which is {owner[user.uid]}'s; "
                "each service needs a user of its own"
            )
        if user.gid in groups:
            raise FailedPrecondition(
                f"bulkhead.users: {user.name!r}, as whom {service} would run, has the group {user.gid} in common with "
                f"{groups[user.gid]}; each service needs a group of its own: groupadd --system {user.name} && "
                f"usermod --gid {user.name} {user.name}"
            )
        owner[user.uid], groups[user.gid] = service, service
