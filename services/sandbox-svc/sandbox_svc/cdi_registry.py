"""The CDI specs of the node: read from their directories when one of the files has changed."""

import logging
import os
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead.errors import NotFound
from sandbox_svc.oci import cdi_spec
from sandbox_svc.oci.cdi_spec import Spec
from sandbox_svc.oci.host import device_node
from sandbox_svc.oci.model import Device, Edits

logger = logging.getLogger(__name__)

#: Bytes of one spec file, and files of one directory: far beyond any vendor's.
MAX_SIZE, MAX_FILES = 16 << 20, 4096

#: What tells one version of a file from another: device, inode, size, time of change (ns).
_Version = tuple[int, int, int, int]


@dataclass(frozen=True)
class _File:
    version: _Version
    spec: Spec | None
    error: str = ""


@dataclass
class _Contents:
    #: Full name -> the file that defines it.
    devices: dict[str, Path] = field(default_factory=dict)
    #: Full name -> files of the same directory that contradict each other.
    conflicts: dict[str, list[Path]] = field(default_factory=dict)


class CdiRegistry:
    """The devices that files in a list of directories define; a later directory wins over an earlier one."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = [Path(directory) for directory in directories]
        self._lock = threading.Lock()
        self._files: dict[Path, _File] = {}
        self._contents = _Contents()

    def edits(self, names: Sequence[str]) -> Edits:
        """Return all edits for devices, those of a file itself once; NotFound names what is missing and why."""
        with self._lock:
            self._refresh()
            if missing := [name for name in names if name not in self._contents.devices]:
                raise NotFound("; ".join(self._missing(name) for name in missing) + self._unreadable())
            found, seen = Edits(), set[Path]()
            for name in names:
                path = self._contents.devices[name]
                spec = self._files[path].spec
                assert spec is not None
                if path not in seen:
                    seen.add(path)
                    found += spec.edits
                found += spec.devices[name.partition("=")[2]]
            return found

    def node(self, path: str) -> Device:
        """Return the device node or FIFO at a path of the host."""
        return device_node(path)

    def unusable(self) -> dict[Path, str]:
        """Return the files that define nothing, and why."""
        with self._lock:
            self._refresh()
            return {path: file.error for path, file in self._files.items() if file.error}

    def _missing(self, name: str) -> str:
        if files := self._contents.conflicts.get(name):
            return f"CDI device {name} is defined more than once: {', '.join(map(str, files))}"
        return f"CDI device {name} is not defined in {', '.join(map(str, self._directories)) or 'any directory'}"

    def _unreadable(self) -> str:
        broken = [f"{path}: {file.error}" for path, file in self._files.items() if file.error]
        return f" (unusable: {'; '.join(broken[:5])})" if broken else ""

    def _refresh(self) -> None:
        """Read the files that are new or have changed, and forget those that are gone."""
        found: dict[Path, _File] = {}
        for path, version in self._scan():
            known = self._files.get(path)
            found[path] = known if known is not None and known.version == version else _read(path, version)
        if found != self._files:
            self._files = found
            self._contents = self._index()

    def _scan(self) -> list[tuple[Path, _Version]]:
        found: list[tuple[Path, _Version]] = []
        for directory in self._directories:
            try:
                with os.scandir(directory) as entries:
                    names = sorted(entry.name for entry in entries if entry.name.endswith((".json", ".yaml")))
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("CDI specs: %s", error)
                continue
            if len(names) > MAX_FILES:
                logger.warning("CDI specs: %s has %d files, %d are read", directory, len(names), MAX_FILES)
            for name in names[:MAX_FILES]:
                try:
                    status = os.stat(directory / name)
                except OSError:
                    continue  # removed meanwhile, or a symlink to nothing
                if stat.S_ISREG(status.st_mode):
                    version = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
                    found.append((directory / name, version))
        return found

    def _index(self) -> _Contents:
        """Return who defines what: between directories the later one wins, within one nobody does."""
        contents = _Contents()
        for directory in self._directories:
            own: dict[str, list[Path]] = {}
            for path, file in self._files.items():
                if path.parent == directory and file.spec is not None:
                    for name in file.spec.devices:
                        own.setdefault(f"{file.spec.kind}={name}", []).append(path)
            for name, paths in own.items():
                contents.devices.pop(name, None)
                contents.conflicts.pop(name, None)
                if len(paths) == 1:
                    contents.devices[name] = paths[0]
                else:
                    contents.conflicts[name] = paths
        return contents


def _read(path: Path, version: _Version) -> _File:
    """Return a file as it is now; one that is not valid defines nothing, and costs no other its devices."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise ValueError(f"more than {MAX_SIZE} bytes")
        return _File(version, cdi_spec.read(data))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        logger.warning("CDI spec %s is not used: %s", path, reason)
        return _File(version, None, reason)
