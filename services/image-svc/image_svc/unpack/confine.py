"""How the helper and its workers give up what they do not need.

The helper itself keeps the capabilities of its workers and what it takes to confine them, and lives in an empty
network namespace, which every worker inherits. A worker sees one directory as its root, holds the descriptors it was
given and no other, and can neither start anything nor get anything back.
"""

import contextlib
import math
import os
import resource
import signal
from dataclasses import dataclass

from image_svc.unpack import linux, seccomp

_MIB = 1024 * 1024


def bits(*capabilities: int) -> int:
    """Return the bit set of some capabilities."""
    return sum(1 << capability for capability in capabilities)


#: What unpacking needs: to make any file, give it to anyone, and set its mode, capability and device number.
FILES = bits(
    linux.CAP_CHOWN,
    linux.CAP_DAC_OVERRIDE,
    linux.CAP_FOWNER,
    linux.CAP_FSETID,
    linux.CAP_SETFCAP,
    linux.CAP_MKNOD,
)
#: To set trusted.overlay.opaque, the kernel asks for CAP_SYS_ADMIN.
OPAQUE = bits(linux.CAP_DAC_OVERRIDE, linux.CAP_SYS_ADMIN)
#: To look at and remove any file.
LOOK = bits(linux.CAP_DAC_OVERRIDE)
REMOVE = bits(linux.CAP_DAC_OVERRIDE, linux.CAP_FOWNER)
#: The helper's own.
HELPER = FILES | OPAQUE | bits(linux.CAP_SETPCAP, linux.CAP_SYS_CHROOT)


@dataclass(frozen=True)
class Confinement:
    """What one worker is left with."""

    #: Descriptor of the directory that becomes its root.
    root: int
    capabilities: int
    #: Descriptors it keeps besides standard input, output and error.
    descriptors: tuple[int, ...] = ()
    #: Processor seconds, bytes of address space, bytes of one file.
    seconds: float = 1800.0
    memory: int = 1024 * _MIB
    file_size: int = 1 << 40
    #: Added to the niceness.
    niceness: int = 0
    #: For work nobody waits for.
    idle: bool = False
    #: The system calls it may make.
    calls: frozenset[str] = seccomp.FILES


def enter_helper() -> None:
    """Confine the helper: an empty network namespace, few capabilities, no way to gain any by a program.

    What its workers share is made here, once.
    """
    seccomp.prepare()
    linux.unshare(linux.CLONE_NEWNET)
    with contextlib.suppress(PermissionError):  # CAP_SETGID may be missing already, and then so are the groups
        os.setgroups([])
    os.umask(0)
    linux.drop_bounding_set(HELPER)
    _keep(HELPER)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def enter(confinement: Confinement, answer: int, parent: int) -> None:
    """Confine this process, a fresh fork of `parent`, for good; of its descriptors it also keeps `answer`.

    The order matters: chroot and the bounding set need capabilities that are gone afterwards, and the filter forbids
    the calls before it.
    """
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _close_all_but({*confinement.descriptors, confinement.root, answer})
    os.fchdir(confinement.root)
    os.chroot(".")
    os.close(confinement.root)
    os.nice(19 if confinement.idle else confinement.niceness)
    if confinement.idle:
        linux.idle_io_priority()
    _limit(confinement)
    linux.drop_bounding_set(confinement.capabilities, among=HELPER)
    _keep(confinement.capabilities)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(confinement.calls)


def _keep(capabilities: int) -> None:
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    linux.capset(capabilities)


def _close_all_but(descriptors: set[int]) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low = 3
    for fd in sorted(descriptors):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 30)


def _limit(confinement: Confinement) -> None:
    seconds = math.ceil(confinement.seconds) + 1
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 5),  # SIGXCPU, which says why, before SIGKILL, which does not
        (resource.RLIMIT_AS, confinement.memory, confinement.memory),
        (resource.RLIMIT_FSIZE, confinement.file_size, confinement.file_size),
        (resource.RLIMIT_NOFILE, 1024, 1024),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
    ):
        _, bound = resource.getrlimit(kind)
        if bound != resource.RLIM_INFINITY:
            soft, hard = min(soft, bound), min(hard, bound)
        resource.setrlimit(kind, (soft, hard))
