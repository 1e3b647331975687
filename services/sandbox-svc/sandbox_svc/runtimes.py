"""Runtime handlers: what a RuntimeClass's name stands for on this node, and what its binary can do."""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

from bulkhead import command
from bulkhead.config.model import Runtime, RuntimeHandler
from bulkhead.errors import BulkheadError, InvalidArgument
from bulkhead.proto.containerd.runc_options_pb2 import Options as RuncOptions
from bulkhead.proto.containerd.runtime_options_pb2 import Options as GenericOptions
from sandbox_svc.oci.model import RuntimeFacts

logger = logging.getLogger(__name__)

RUNC_TYPE = "io.containerd.runc.v2"


@dataclass(frozen=True)
class Resolved:
    """A handler ready to be used."""

    #: Its name in the configuration.
    name: str
    handler: RuntimeHandler
    #: The OCI runtime's path for our own shim, "" for a foreign one.
    binary: str
    facts: RuntimeFacts
    #: Where the OCI runtime keeps its state.
    root: str

    @property
    def ours(self) -> bool:
        """Whether our own shim serves it."""
        return self.handler.runtime_type == RUNC_TYPE and not self.handler.runtime_path

    @property
    def systemd_cgroup(self) -> bool:
        """Whether containers' cgroups are made through systemd."""
        return bool(self.handler.options.get("SystemdCgroup", False))

    def options(self) -> Message | None:
        """Return the runtime options as the shim's Create takes them."""
        given = self.handler.options
        if self.handler.runtime_type != RUNC_TYPE:
            if not given:
                return None
            return GenericOptions(
                type_url=str(given.get("TypeUrl", "")),
                config_path=str(given.get("ConfigPath", "")),
                config_body=str(given.get("ConfigBody", "")).encode(),
            )
        return RuncOptions(
            no_pivot_root=bool(given.get("NoPivotRoot", False)),
            no_new_keyring=bool(given.get("NoNewKeyring", False)),
            shim_cgroup=str(given.get("ShimCgroup", "")),
            io_uid=int(given.get("IoUid", 0)),
            io_gid=int(given.get("IoGid", 0)),
            binary_name=self.binary,
            root=self.root,
            systemd_cgroup=self.systemd_cgroup,
            criu_image_path=str(given.get("CriuImagePath", "")),
            criu_work_path=str(given.get("CriuWorkPath", "")),
        )


class Runtimes:
    """The handlers of the configuration; the default one prefers crun where it works."""

    def __init__(self, config: Runtime, state: Path, crun: str = "") -> None:
        """Take the configuration, the state directory, and crun's path if it was seen to work here."""
        self._config = config
        self._state = state
        self._crun = crun
        self._resolved: dict[str, Resolved] = {}

    @property
    def default(self) -> str:
        """The name of the default handler."""
        return self._config.default_runtime_name

    def names(self) -> list[str]:
        """Return every handler's name."""
        return sorted({*self._config.runtimes, self.default})

    def resolve(self, name: str) -> Resolved:
        """Return the handler of a request, "" for the default one; InvalidArgument names the known ones."""
        name = name or self.default
        if (known := self._resolved.get(name)) is not None:
            return known
        handler = self._config.runtimes.get(name)
        if handler is None:
            if name != self.default:
                raise InvalidArgument(
                    f"runtime_handler is {name!r}, expected one of the configured: {', '.join(self.names())}"
                )
            handler = RuntimeHandler(name=name)
        if handler.sandboxer not in ("", "podsandbox"):
            raise InvalidArgument(
                f'runtime_handler {name!r} has sandboxer = {handler.sandboxer!r}; only "podsandbox" is supported'
            )
        made = self._resolved[name] = self._make(name, handler)
        return made

    def _make(self, name: str, handler: RuntimeHandler) -> Resolved:
        wanted = str(handler.options.get("BinaryName", ""))
        if not wanted:
            wanted = self._crun if name == self.default and self._crun else "runc"
        root = str(handler.options.get("Root", "")) or str(self._state / "runtime" / name)
        is_runc = handler.runtime_type == RUNC_TYPE
        binary = (shutil.which(wanted) or wanted) if is_runc else ""
        return Resolved(name, handler, binary, facts(binary) if is_runc else RuntimeFacts(name=""), root)


def facts(binary: str) -> RuntimeFacts:
    """Return what an OCI runtime can do, from its version: crun has a `features` command only since 1.9."""
    try:
        text = command.run([binary, "--version"], timeout=10).stdout.decode(errors="replace")
    except BulkheadError as error:
        logger.warning("OCI runtime %s: %s", binary, error)
        return RuntimeFacts(name="")
    found = re.search(r"(crun|runc) version (\d+)\.(\d+)", text)
    if found is None:
        return RuntimeFacts(name="")
    name, version = found[1], (int(found[2]), int(found[3]))
    if name == "crun":
        return RuntimeFacts(
            name="crun",
            oci_version="1.0.2",
            recursive_read_only=version >= (1, 8),
            id_mapped_mounts=version >= (1, 5),
            seccomp_bpf_annotation=True,
        )
    return RuntimeFacts(
        name="runc",
        oci_version="1.0.2",
        recursive_read_only=version >= (1, 1),
        id_mapped_mounts=version >= (1, 2),
    )
