"""The system users that services run as."""

import grp
import pwd
from collections.abc import Mapping
from dataclasses import dataclass

from bulkhead.errors import FailedPrecondition

#: The group whose members may call the services' sockets.
GROUP = "bulkhead"


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
    """Two services under one user could trace each other and read each other's files."""
    owner: dict[int, str] = {0: "root"}
    for service, user in users.items():
        if user.uid in owner:
            raise FailedPrecondition(
                f"bulkhead.users: {service} would run as {user.name!r} (uid {user.uid}), which is {owner[user.uid]}'s; "
                "each service needs a user of its own"
            )
        owner[user.uid] = service
