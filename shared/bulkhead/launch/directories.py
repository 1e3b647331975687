"""The directories of a stack: who owns each, and who may search it. The one list of them."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from bulkhead import paths
from bulkhead.config.model import Config
from bulkhead.errors import FailedPrecondition
from bulkhead.launch.users import Users

#: 0711 everywhere: names are not for reading, and a service reaches only what it knows. The set-group-id bit gives
#: the sockets made in a directory the group of their callers, of which their makers need not be members.
SEARCH, CALLED, PRIVATE = 0o711, 0o2711, 0o700


@dataclass(frozen=True)
class Directory:
    """One directory with owner and mode."""

    path: Path
    uid: int
    gid: int
    mode: int

    def describe(self) -> str:
        """Return what execute() makes."""
        return f"{self.path} {self.uid}:{self.gid} {self.mode:04o}"

    def execute(self) -> None:
        """Make the directory, or give an existing one this owner and mode; a symbolic link there is refused."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.path, PRIVATE)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise FailedPrecondition(f"{self.path} is not a directory that can be used: {error.strerror}") from error
        try:
            os.fchown(fd, self.uid, self.gid)
            # After chown, which clears the set-group-id bit.
            os.fchmod(fd, self.mode)
        finally:
            os.close(fd)


def wanted(config: Config, users: Users) -> list[Directory]:
    """Return everything that must stand before the first service starts, parents first."""
    return [*_root(config, users), *_state(config, users)]


def _root(config: Config, users: Users) -> list[Directory]:
    root, image = config.root, users.of("image-svc")
    return [
        Directory(root, 0, 0, SEARCH),
        Directory(root / "blobs", image.uid, image.gid, SEARCH),
        Directory(root / "ingest", image.uid, image.gid, PRIVATE),
        # The unpack helper's: files in layers belong to whom the image says.
        Directory(root / "snapshots", 0, 0, SEARCH),
        # SQLite makes files beside its database, and only root may write to root's directory: it holds sandboxes.db.
        Directory(paths.image_records(root), image.uid, image.gid, PRIVATE),
    ]


def _state(config: Config, users: Users) -> list[Directory]:
    state, group = config.state, users.group
    made: list[Directory] = [
        Directory(state, 0, 0, SEARCH),
        Directory(state / "config", 0, 0, SEARCH),
        Directory(state / "credentials", 0, 0, SEARCH),
        *(Directory(credentials(state, name), 0, 0, PRIVATE) for name in ("decryptor", "image-svc", "stream-svc")),
        Directory(granted_files(state, "decryptor"), 0, 0, PRIVATE),
        Directory(paths.stream_socket(state, "x").parent.parent, 0, 0, SEARCH),
        Directory(paths.bundle(state, "x").parent, 0, 0, SEARCH),
        Directory(paths.zygote_socket(state).parent, 0, 0, PRIVATE),
        Directory(paths.unpack_socket(state).parent, 0, 0, SEARCH),
    ]
    # Whoever calls sandbox-svc is as good as root, so that takes more than the group that people may be in.
    callers = {"sandbox-svc": users.of("cri-frontend").gid}
    for service in ("sandbox-svc", "image-svc", "stream-svc", "decryptor"):
        directory = paths.service_socket(state, service).parent
        made.append(Directory(directory, users.of(service).uid, callers.get(service, group), CALLED))
    frontend = paths.cri_socket(state).parent
    made.append(Directory(frontend, users.of("cri-frontend").uid, config.grpc.gid or group, CALLED))
    return list(dict.fromkeys(made))


def credentials(state: Path, service: str) -> Path:
    """Return where copies of keys for one service are mounted, in its own mount namespace only."""
    return state / "credentials" / service


def granted_files(state: Path, service: str) -> Path:
    """Return where copies of other files for one service are mounted; the decryptor has both."""
    return state / "credentials" / ("decryptor-files" if service == "decryptor" else service)


def make_bases(config: Config) -> None:
    """Make root and state, and their parents as far as those are missing; existing parents stay as they are."""
    for base in (config.root, config.state):
        for directory in reversed([base, *base.parents]):
            if directory == base or not directory.exists():
                Directory(directory, 0, 0, SEARCH).execute()


def make(config: Config, users: Users) -> None:
    """Make everything below root and state, which must be there."""
    for step in wanted(config, users):
        step.execute()
