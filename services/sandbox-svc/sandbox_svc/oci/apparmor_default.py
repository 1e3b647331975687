"""The AppArmor profile of containers that ask for the runtime's default: made and loaded where it is not yet.

It confines as containerd's of the same name does: a program may do everything with files, network and capabilities, but
mount nothing, not write to the parts of /proc and /sys that are the node's, and take signals only from its like and
from what runs containers.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from bulkhead import command
from bulkhead.errors import FailedPrecondition
from sandbox_svc.oci.apparmor import DEFAULT_PROFILE
from sandbox_svc.oci.model import Host

logger = logging.getLogger(__name__)

#: Where AppArmor's own includes stand, if the distribution has them.
INCLUDES = "/etc/apparmor.d"

#: Seconds for the parser, which compiles the policy.
_TIMEOUT = 30.0

_lock = threading.Lock()

_RULES = """
profile {name} flags=(attach_disconnected, mediate_deleted) {{
{base}
  file,
  network,
  capability,
  umount,
  deny mount,

  # Signals: from unconfined processes, the runtimes and our own kind, and among containers.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (receive) peer={daemon},
  signal (send, receive) peer={name},

  # Tracing: among containers, where the kernel's other rules allow it.
  ptrace (trace, tracedby, read, readby) peer={name},

  # /proc: nothing but a process's own directory and shared memory's settings may be written.
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9/],[^1-9/][^0-9/],[^1-9s/][^0-9y/][^0-9s/],[^1-9/][^0-9/][^0-9/][^0-9/]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,

  # /sys: nothing but cgroups may be written, and firmware, power capping and security modules not even read.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def ensure_loaded(host: Host) -> None:
    """Load the default profile unless the kernel has one of its name, which is then used as it is.

    It is asked for at every container, for a reload of the node's policy may take it away. Raises FailedPrecondition
    with the parser's words.
    """
    if host.apparmor_profile_loaded(DEFAULT_PROFILE):
        return
    with _lock:
        if host.apparmor_profile_loaded(DEFAULT_PROFILE):
            return
        result = command.run(
            ["apparmor_parser", "--replace", "--skip-cache"],
            input=profile(_own_profile()).encode(),
            timeout=_TIMEOUT,
        )
        if result.returncode:
            raise FailedPrecondition(f"AppArmor profile {DEFAULT_PROFILE}: {result.complaint}")
        logger.info("loaded the AppArmor profile %s", DEFAULT_PROFILE)


def profile(daemon: str, exists: Callable[[str], bool] = os.path.exists) -> str:
    """Return the profile's source, for a daemon that itself runs under the profile named."""
    head = []
    if exists(f"{INCLUDES}/abi/3.0"):
        head.append("abi <abi/3.0>,")
    # Without the tunables, the one variable that the rules use is set here.
    head.append("#include <tunables/global>" if exists(f"{INCLUDES}/tunables/global") else "@{PROC}=/proc/")
    base = "  #include <abstractions/base>" if exists(f"{INCLUDES}/abstractions/base") else ""
    return "\n".join(head) + _RULES.format(name=DEFAULT_PROFILE, base=base, daemon=daemon)


def _own_profile() -> str:
    """Return our own profile's name, without its mode."""
    try:
        text = Path("/proc/self/attr/current").read_text()
    except OSError:
        text = ""
    return text.partition(" ")[0].strip("\0\n") or "unconfined"
