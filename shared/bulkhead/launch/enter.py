"""Carrying out a plan: mounts and namespaces while still root, then limits, then who one is, then exec."""

import contextlib
import os
import resource
import stat
from pathlib import Path
from typing import NoReturn

from bulkhead.launch import linux
from bulkhead.launch.grants import grant
from bulkhead.launch.plan import Plan, limits_now

#: Bounds on a key directory: what is larger than FILE_LIMIT is cut one byte beyond it, so that the reader notices.
FILE_LIMIT, COUNT_LIMIT, DEPTH_LIMIT = 1024 * 1024, 1024, 8
#: The name of the copy, as LoadCredential= in the unit has it.
KEYS = "keys"
_LISTEN_FD = 3


def enter(plan: Plan, parent: int) -> NoReturn:
    """Become the program of the plan, by exec; `parent` is the pid of the supervisor."""
    confine(plan, parent)
    execute(plan, variables(plan))


def execute(plan: Plan, environment: dict[str, str]) -> NoReturn:
    """Exec the program with these variables."""
    os.execve(plan.arguments[0], plan.arguments, environment)  # noqa: S606 # what a launcher is for


def variables(plan: Plan) -> dict[str, str]:
    """Return the program's environment, with what sd_listen_fds(3) wants to see in it."""
    if plan.listen_fd < 0:
        return dict(plan.environment)
    return {**plan.environment, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}


def confine(plan: Plan, parent: int) -> None:
    """Carry out the plan in this process, up to the program. Each step needs privileges that a later one gives up."""
    namespaces = linux.CLONE_NEWNS * plan.mount_namespace | linux.CLONE_NEWNET * plan.no_network
    if namespaces:
        linux.unshare(namespaces)
    if plan.mount_namespace:
        _arrange_mounts(plan)
    _set_limits(plan)
    os.umask(plan.umask)
    if plan.capabilities is not None:
        _become(plan, plan.capabilities)
    if plan.parent_death_signal:
        # After setuid, which clears it; the parent may have died before.
        linux.prctl(linux.PR_SET_PDEATHSIG, plan.parent_death_signal)
        if os.getppid() != parent:
            raise OSError(0, "the supervisor is gone")
    if plan.listen_fd >= 0:
        if plan.listen_fd != _LISTEN_FD:
            os.dup2(plan.listen_fd, _LISTEN_FD)
        os.set_inheritable(_LISTEN_FD, True)
    os.chdir("/")


def _arrange_mounts(plan: Plan) -> None:
    # A slave: mounts of the host go on appearing here, none of these ever shows there.
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
    if plan.credentials:
        source, target = plan.credentials
        copy_into_memory(source, target, plan.uid, plan.gid)
    if plan.grants:
        grant(plan.grants, plan.grants_directory, plan.uid, plan.gid, plan.groups)
    for directory in map(os.path.realpath, plan.hide):
        if os.path.isdir(directory):
            flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            linux.mount("tmpfs", directory, "tmpfs", flags, "mode=0555,size=4k,nr_inodes=1")


def copy_into_memory(source: str, target: str, uid: int, gid: int) -> None:
    """Copy a directory of keys into a ramfs, which is never swapped, readable by one user and closed to writing."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("ramfs", target, "ramfs", flags, "mode=0700")
    copy = Path(target) / KEYS
    copy.mkdir()
    _copy(Path(source), copy, uid, gid)
    for directory in (copy, target):
        os.chown(directory, uid, gid)
        os.chmod(directory, 0o500)
    linux.mount("", target, "", linux.MS_REMOUNT | linux.MS_RDONLY | flags)


def _copy(source: Path, target: Path, uid: int, gid: int) -> None:
    """Copy the files below a directory, following links, by path; see _copy_file for what is not a file.

    Names that start with two dots belong to the way Kubernetes swaps a mounted Secret; its keys are links to them.
    """
    pending, seen, count = [(source, target, 0)], set[tuple[int, int]](), 0
    while pending:
        here, there, depth = pending.pop()
        try:
            status = here.stat()
            names = sorted(os.listdir(here)) if stat.S_ISDIR(status.st_mode) else []
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen or depth > DEPTH_LIMIT:
            continue
        seen.add((status.st_dev, status.st_ino))
        if there != target:
            there.mkdir(mode=0o700)
            os.chown(there, uid, gid)
        for name in names:
            if name.startswith("..") or count > COUNT_LIMIT:
                continue
            if os.path.isdir(here / name):  # which, unlike Path's, minds no link, wherever it leads
                pending.append((here / name, there / name, depth + 1))
            else:
                count += 1
                _copy_file(here / name, there / name, uid, gid)


def _copy_file(source: Path, target: Path, uid: int, gid: int) -> None:
    """Copy one file; what cannot be copied becomes a link that leads nowhere and says why, for the reader to report."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        target.symlink_to(f"cannot be opened: {error.strerror}")
        return
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            target.symlink_to("not a regular file")
            return
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        try:
            # In the kernel: the bytes never enter this process.
            left = FILE_LIMIT + 1
            while left and (sent := os.sendfile(out, file.fileno(), None, left)):
                left -= sent
            os.fchown(out, uid, gid)
        finally:
            os.close(out)


def _set_limits(plan: Plan) -> None:
    for kind, wanted in plan.limits.items():
        _, hard = resource.getrlimit(kind)
        try:
            resource.setrlimit(kind, (wanted, wanted))
        except (ValueError, PermissionError):
            resource.setrlimit(kind, limits_now(kind, wanted, hard))
    if plan.oom_score_adj is not None:
        # Lowering it takes CAP_SYS_RESOURCE, which a supervisor in a container may lack.
        with contextlib.suppress(PermissionError):
            Path("/proc/self/oom_score_adj").write_text(str(plan.oom_score_adj))


def _become(plan: Plan, capabilities: tuple[str, ...]) -> None:
    """Take on the user, keep only those capabilities, and rule out gaining any by a program."""
    keep = sum(1 << linux.CAPABILITIES[name] for name in capabilities)
    linux.drop_bounding_set(keep)
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    os.setgroups(plan.groups)
    os.setresgid(plan.gid, plan.gid, plan.gid)
    os.setresuid(plan.uid, plan.uid, plan.uid)
    # Root keeps what is in the bounding set over exec; another user has lost all by now, and this clears the rest.
    linux.capset(keep if plan.uid == 0 else 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
