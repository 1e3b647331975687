"""What one stack has for itself: its directories, its socket, its ports. A second claimant is refused."""

import fcntl
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from bulkhead import paths
from bulkhead.config.model import Config
from bulkhead.errors import FailedPrecondition
from bulkhead.sockets import is_live
from bulkhead.supervisor.roster import ZYGOTE, sockets

#: Services whose supervisor was killed end by themselves; this many seconds are given to them.
ORPHANS_WAIT = 8.0


def lock(directories: Iterable[Path]) -> list[int]:
    """Lock the directories until this process ends; FailedPrecondition names one that another stack has."""
    held: list[int] = []
    for directory in directories:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise FailedPrecondition(f"{directory} is in use by another running stack") from error
        held.append(fd)
    return held


def address(config: Config) -> Path:
    """Return the CRI socket's path as configured, with or without `unix://`."""
    return Path(config.grpc.address.removeprefix("unix://"))


def refuse_long_paths(config: Config) -> None:
    """Raise FailedPrecondition if a unix socket below the state directory would have a path that is too long."""
    shim = paths.shim_directory(config.state, "x") / "stream"
    longest = max([*sockets(config).values(), shim], key=lambda path: len(os.fsencode(path)))
    over = len(os.fsencode(longest)) - paths.SOCKET_PATH_LIMIT
    if over > 0:
        raise FailedPrecondition(
            f"state directory {config.state.parent} is {over} bytes too long: the socket {longest} would exceed "
            f"{paths.SOCKET_PATH_LIMIT} bytes (unix(7))"
        )


def refuse_live_sockets(config: Config) -> None:
    """Raise FailedPrecondition if another process serves a socket that this stack would serve."""
    own = [path for name, path in sockets(config).items() if name != ZYGOTE]
    end = time.monotonic() + ORPHANS_WAIT
    while busy := [path for path in own if is_live(str(path))]:
        if time.monotonic() >= end:
            raise FailedPrecondition(f"{busy[0]} is in use by another process (services started outside this stack?)")
        time.sleep(0.1)
    target = address(config)
    if is_live(str(target)):
        raise FailedPrecondition(f"grpc.address {target} is in use by another process: stop it or choose another")
    if target.exists() and not target.is_symlink() and not target.is_socket():
        raise FailedPrecondition(f"grpc.address {target} exists and is not a socket")


def refuse_busy_ports(config: Config) -> None:
    """Raise FailedPrecondition naming the first metrics port that another process has."""
    end = time.monotonic() + ORPHANS_WAIT
    for name, port in config.bulkhead.metrics_ports.items():
        while port > 0:
            try:
                listener(name, port).close()
                break
            except FailedPrecondition:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.1)


def listener(name: str, port: int) -> socket.socket:
    """Return a listening socket on that loopback port, 0 for any."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=16)
    except OSError as error:
        raise FailedPrecondition(
            f"port {port} for {name}'s metrics: {error.strerror}; bulkhead.metrics_ports.{name} chooses another, "
            "-1 switches it off"
        ) from error


def publish_address(config: Config) -> None:
    """Make the configured address a link to the frontend's socket."""
    link, target = address(config), sockets(config)["cri-frontend"]
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    link.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(target)
    temporary.replace(link)


def withdraw_address(config: Config) -> None:
    """Remove the link if it is this stack's."""
    link = address(config)
    if link.is_symlink() and os.readlink(link) == str(sockets(config)["cri-frontend"]):
        link.unlink()


def give_socket(config: Config) -> None:
    """Give the CRI socket to the configured user and group; the frontend, not being root, cannot."""
    path = sockets(config)["cri-frontend"]
    if (config.grpc.uid or config.grpc.gid) and path.exists():
        os.chown(path, config.grpc.uid or -1, config.grpc.gid or -1, follow_symlinks=False)


def pid_file(config: Config) -> Path:
    """Return where the supervisor's pid is written: beside io.bulkhead, or in it if the directory is containerd's."""
    parent = config.state.parent
    shared = parent.name == "containerd" or any(parent.glob("io.containerd.*"))
    return (config.state if shared else parent) / "bulkhead.pid"
