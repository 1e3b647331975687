"""What a service is allowed: one frozen plan each, which tests compare and the launcher carries out."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import InvalidArgument
from bulkhead.launch.linux import CAPABILITIES

#: What the unpack helper needs: those of its workers, and what it takes to confine each of them further.
UNPACK_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "SETFCAP",
    "MKNOD",
    "SYS_ADMIN",
    "SYS_CHROOT",
    "SETPCAP",
)

#: Variables of the caller's environment that a service may see; everything else may be somebody's secret.
PASSED_ON = ("PATH", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PASSED_ON_PREFIX = ("LC_", "BULKHEAD_", "GRPC_")
_PROXY = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Plan:
    """How one program is started. Paths are absolute; uid, gid and groups are numbers."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    #: Capability names that stay; None leaves everything as it is (sandbox-svc, the zygote).
    capabilities: tuple[str, ...] | None = None
    #: Directories covered by an empty read-only file system.
    hide: tuple[str, ...] = ()
    #: A directory copied, as root, into memory that only this service sees, and the directory that shows the copy as
    #: `keys`: what systemd calls a credentials directory.
    credentials: tuple[str, str] | None = None
    #: Files and directories of which the user shall be able to read every file, and a directory for the copies.
    grants: tuple[str, ...] = ()
    grants_directory: str = ""
    #: A network namespace without even a loopback interface that is up.
    no_network: bool = False
    umask: int = 0o022
    #: Signal that the program gets when its parent dies; 0 for none.
    parent_death_signal: int = 0
    #: resource.RLIMIT_* number to the value wanted; where the hard limit is lower, that is taken.
    limits: dict[int, int] = field(default_factory=dict)
    oom_score_adj: int | None = None
    #: A listening socket that becomes descriptor 3 (sd_listen_fds(3)); -1 for none.
    listen_fd: int = -1

    def __post_init__(self) -> None:
        for name in self.capabilities or ():
            if name not in CAPABILITIES:
                raise InvalidArgument(f"unknown capability {name!r}")
        if self.uid and self.capabilities is None:
            raise InvalidArgument(
                "a user other than root is started with a list of capabilities, an empty one included"
            )

    @property
    def mount_namespace(self) -> bool:
        """Whether the program gets a mount namespace of its own."""
        return bool(self.hide or self.credentials or self.grants)

    def to_json(self) -> str:
        """Return the plan as it is handed to the launcher's process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan back."""
        data: dict[str, Any] = json.loads(text)
        for name in ("arguments", "groups", "hide", "grants", "capabilities", "credentials"):
            if data[name] is not None:
                data[name] = tuple(data[name])
        data["limits"] = {int(kind): value for kind, value in data["limits"].items()}
        return cls(**data)


def environment(source: Mapping[str, str], home: str) -> dict[str, str]:
    """Return what a service sees of an environment: where programs are, language, proxies, certificates."""
    kept = {
        name: value
        for name, value in source.items()
        if name in PASSED_ON or name.startswith(_PASSED_ON_PREFIX) or name.lower() in _PROXY
    }
    kept.setdefault("PATH", _PATH)
    # One arena a thread costs megabytes with hundreds of threads; grpc's own chatter is not for the log.
    defaults = {"MALLOC_ARENA_MAX": "2", "GRPC_VERBOSITY": "NONE", "PYTHONUNBUFFERED": "1", "HOME": home}
    return {**defaults, **kept}


def limits_now(kind: int, wanted: int, hard: int, infinity: int = -1) -> tuple[int, int]:
    """Return the soft and hard limit to set so that `wanted` is reached as far as the hard limit allows."""
    if hard == infinity or (wanted != infinity and wanted <= hard):
        return wanted, wanted
    return hard, hard
