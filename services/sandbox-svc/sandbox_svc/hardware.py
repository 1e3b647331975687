"""What the configuration adds to the node's own hardware: CDI devices, block I/O classes, RDT classes."""

import glob
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead.config.model import Runtime
from bulkhead.errors import FailedPrecondition
from sandbox_svc import resctrl
from sandbox_svc.cdi_registry import CdiRegistry
from sandbox_svc.oci import blockio, rdt
from sandbox_svc.oci.blockio import BlockioClass, Numbers
from sandbox_svc.oci.rdt import RdtClass
from sandbox_svc.resctrl import Resctrl

logger = logging.getLogger(__name__)

#: Where specs of CDI devices are looked for when nobody says (SPEC.md of the CDI); an empty list means the same.
DEFAULT_CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
#: Bytes of a file of classes.
MAX_SIZE = 4 << 20
#: Devices that the patterns of one class may stand for.
MAX_DEVICES = 4096


@dataclass(frozen=True)
class _Blockio:
    classes: dict[str, BlockioClass] = field(default_factory=dict)
    #: Why there are none.
    problem: str = "no block I/O classes are configured on this node (blockio_config_file)"
    enabled: bool = False


@dataclass(frozen=True)
class _Rdt:
    classes: dict[str, RdtClass] = field(default_factory=dict)
    problem: str = "no RDT classes are configured on this node (rdt_config_file)"
    resctrl: Resctrl | None = None


class ConfiguredHardware:
    """Answers the spec builders (`sandbox_svc.oci.model.Hardware`)."""

    def __init__(self, config: Runtime) -> None:
        """Read the files of classes, and set up resctrl; what is wrong with them is logged and told to containers."""
        self._cdi = CdiRegistry(config.cdi_spec_dirs or DEFAULT_CDI_DIRECTORIES)
        self._blockio = _read_blockio(config.blockio_config_file)
        self._rdt = _read_rdt(config.rdt_config_file)
        self.edits = self._cdi.edits
        self.node = self._cdi.node

    @property
    def blockio_enabled(self) -> bool:
        """Whether a file of block I/O classes was read."""
        return self._blockio.enabled

    @property
    def rdt_enabled(self) -> bool:
        """Whether RDT classes were set up."""
        return self._rdt.resctrl is not None

    def block_io(self, name: str) -> dict[str, object]:
        """Return linux.resources.blockIO of a class; FailedPrecondition says why there is none."""
        if not self._blockio.enabled:
            raise FailedPrecondition(self._blockio.problem)
        found = self._blockio.classes.get(name)
        if found is None:
            known = ", ".join(sorted(self._blockio.classes)[:20])
            raise FailedPrecondition(f"there is no such class, expected one of: {known}")
        if found.error:
            raise FailedPrecondition(f"the class is not usable: {found.error}")
        return blockio.block_io(found, block_devices)

    def check_rdt_class(self, name: str, *, from_pod: bool) -> None:
        """Raise FailedPrecondition for a class that is not there, or that may not be asked for in this way.

        A class of the file has its own rules; a directory that somebody else made in resctrl is good, too.
        """
        if self._rdt.resctrl is None:
            raise FailedPrecondition(self._rdt.problem)
        if not rdt.qualified(name) or not self._rdt.resctrl.exists(name):
            raise FailedPrecondition("there is no such class")
        wanted = self._rdt.classes.get(name)
        if wanted is not None and (wanted.deny_pod_annotation if from_pod else wanted.deny_container_annotation):
            raise FailedPrecondition(f"{'pods' if from_pod else 'containers'} may not ask for it (rdt_config_file)")


def block_devices(patterns: Sequence[str]) -> Iterable[Numbers]:
    """Return the block devices that path patterns stand for, symlinks followed; anything else is left out."""
    found: set[Numbers] = set()
    for pattern in patterns:
        matches = glob.glob(pattern) if pattern.startswith("/") else []
        for path in matches[:MAX_DEVICES]:
            try:
                status = os.stat(path)
            except OSError:
                continue
            if stat.S_ISBLK(status.st_mode):
                found.add((os.major(status.st_rdev), os.minor(status.st_rdev)))
    if not found:
        logger.warning("block I/O: no block device is called %s", ", ".join(patterns))
    return sorted(found)


def _read_blockio(path: str) -> _Blockio:
    if not path:
        return _Blockio()
    try:
        classes = blockio.read(_bytes(path))
    except (OSError, ValueError) as error:
        logger.error("blockio_config_file %s: %s; containers that ask for a class are refused", path, error)
        return _Blockio(problem=f"blockio_config_file {path}: {error}")
    for name, found in classes.items():
        if found.error:
            logger.error("blockio_config_file %s: class %s is not usable: %s", path, name, found.error)
    return _Blockio(classes, "", enabled=True)


def _read_rdt(path: str) -> _Rdt:
    if not path:
        return _Rdt()
    try:
        kernel = resctrl.mounted(Path("/proc/mounts").read_text(errors="surrogateescape"))
        if kernel is None:
            raise ValueError("resctrl is not mounted on this node (resctrl.rst of the kernel)")
        classes = rdt.read(_bytes(path), kernel.info())
        kernel.set_up(classes)
    except (OSError, ValueError, KeyError) as error:
        logger.error("rdt_config_file %s: %s; containers that ask for a class are refused", path, error)
        return _Rdt(problem=f"rdt_config_file {path}: {error}")
    return _Rdt(classes, "", kernel)


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(MAX_SIZE + 1)
    if len(data) > MAX_SIZE:
        raise ValueError(f"more than {MAX_SIZE} bytes")
    return data
