"""SELinux labels of a process and its mounts."""

import hashlib
import re

from bulkhead.config.model import Runtime
from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import HostFacts, Json

_LEVEL = re.compile(r"s\d(-s\d)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?")
_FILE_TYPE = "container_file_t"
#: The process type of a virtual machine around a pod (container-selinux, kvm_process of its lxc_contexts), and the
#: runtimes that make one, as containerd knows them.
_MACHINE_TYPE, _MACHINES = "container_kvm_t", "io.containerd.kata"


def labels(
    options: cri.SELinuxOption, inherited: str, seed: str, runtime: Runtime, facts: HostFacts
) -> tuple[str, str]:
    """Return the process and the mount label, both "" where SELinux is off here or in the configuration.

    What the options leave out comes from the inherited label (the pod's), then from the defaults of container-selinux.
    The two categories of a pod derive from its id, within selinux_category_range, so they need no book-keeping and
    survive restarts.
    """
    if options.level and not _LEVEL.fullmatch(options.level):
        raise InvalidArgument(f"linux.security_context.selinux_options.level: {options.level!r} is no MCS level")
    if not (facts.selinux and runtime.enable_selinux):
        return "", ""
    defaults = ["system_u", "system_r", "container_t", _level(seed, runtime.selinux_category_range)]
    if inherited.count(":") >= 3:
        defaults = inherited.split(":", 3)
    wanted = [options.user, options.role, options.type, options.level]
    user, role, type_, level = (asked or default for asked, default in zip(wanted, defaults, strict=True))
    return f"{user}:{role}:{type_}:{level}", f"{user}:object_r:{_FILE_TYPE}:{level}"


def apply(spec: Json, process_label: str, mount_label: str, *, privileged: bool, runtime_type: str) -> None:
    """Set the labels; a privileged process runs unlabelled, its mounts do not."""
    if process_label and not privileged:
        user, role, type_, level = process_label.split(":", 3)
        if _MACHINES in runtime_type:
            type_ = _MACHINE_TYPE
        spec["process"]["selinuxLabel"] = f"{user}:{role}:{type_}:{level}"
    if mount_label:
        spec["linux"]["mountLabel"] = mount_label


def _level(seed: str, category_range: int) -> str:
    """Return a level with two different categories below category_range."""
    count = max(2, min(category_range, 1024))
    digest = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    first, second = digest % count, (digest // count) % (count - 1)
    if second >= first:
        second += 1
    return f"s0:c{min(first, second)},c{max(first, second)}"
