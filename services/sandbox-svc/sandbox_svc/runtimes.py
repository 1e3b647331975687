"""Runtime handlers: what a RuntimeClass's name stands for on this node, and what its binary can do."""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def options(self, owner: tuple[int, int] | None = None) -> Message | None:
        """Return the runtime options as the shim's Create takes them; `owner` (uid, gid) is who gets the streams."""
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
            io_uid=owner[0] if owner else int(given.get("IoUid", 0)),
            io_gid=owner[1] if owner else int(given.get("IoGid", 0)),
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
    """Return what an OCI runtime can do: what it says itself, and where it has no command for that, by its version."""
    try:
        text = command.run([binary, "--version"], timeout=10).stdout.decode(errors="replace")
    except BulkheadError as error:
        logger.warning("OCI runtime %s: %s", binary, error)
        return RuntimeFacts(name="")
    found = re.search(r"(crun|runc) version (\d+)\.(\d+)", text)
    if found is None:
        return RuntimeFacts(name="")
    name, version = found[1], (int(found[2]), int(found[3]))
    told = _features(binary)
    idmap = ((told.get("linux") or {}).get("mountExtensions") or {}).get("idmap") or {}
    # crun has the command since 1.9, runc since 1.1; crun's older releases mount recursively read-only since 1.8.
    return RuntimeFacts(
        name=name,
        oci_version="1.0.2",
        recursive_read_only="rro" in told.get("mountOptions", ()) if told else name == "crun" and version >= (1, 8),
        id_mapped_mounts=bool(idmap.get("enabled")),
        net_devices=bool(((told.get("linux") or {}).get("netDevices") or {}).get("enabled")),
        memory_policy=bool((told.get("linux") or {}).get("memoryPolicy")),
        # Nothing in `features` names them.
        scheduling=_newest(told) >= (1, 1),
        seccomp_bpf_annotation=name == "crun",
    )


def _newest(told: dict[str, Any]) -> tuple[int, int]:
    """Return major and minor of the newest runtime specification that a runtime knows, by its features."""
    found = re.match(r"(\d+)\.(\d+)", str(told.get("ociVersionMax", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _features(binary: str) -> dict[str, Any]:
    """Return what a runtime's `features` prints (features.md of the runtime specification); {} without the command."""
    try:
        told = json.loads(command.run([binary, "features"], timeout=10).stdout)
    except (BulkheadError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}
