"""The kernel's resctrl file system: what it can allocate, and the classes that are directories in it."""

from collections.abc import Mapping
from pathlib import Path

from sandbox_svc.oci.rdt import LEVELS, ROOT_CLASS, BandwidthInfo, Info, RdtClass
from sandbox_svc.oci.rdt_cache import CacheInfo


class Resctrl:
    """A mounted resctrl."""

    def __init__(self, root: Path, options: frozenset[str] = frozenset()) -> None:
        self._root = root
        #: Of its mount: cdp, mba_MBps, ….
        self._options = options

    def info(self) -> Info:
        """Return what can be allocated; ValueError or OSError where its files do not say it."""
        ids = _ids((self._root / "schemata").read_text())
        caches = {}
        for level in LEVELS:
            for name, split in ((level, False), (f"{level}CODE", True)):
                place = self._root / "info" / name
                if place.is_dir() and (mask := int(_text(place / "cbm_mask"), 16)):
                    caches[level] = CacheInfo(ids[name], mask, int(_text(place / "min_cbm_bits")), split)
        bandwidth = None
        if (place := self._root / "info" / "MB").is_dir():
            bandwidth = BandwidthInfo(ids["MB"], int(_text(place / "min_bandwidth")), "mba_MBps" in self._options)
        return Info(caches, bandwidth)

    def exists(self, name: str) -> bool:
        """Tell whether there is a class of that name, ours or another's."""
        return (self._place(name) / "tasks").is_file()

    def set_up(self, classes: Mapping[str, RdtClass]) -> None:
        """Make the directories of classes and write what they get; other directories are left alone.

        ValueError carries the kernel's own reason (info/last_cmd_status) where it refuses.
        """
        for name, wanted in classes.items():
            place = self._place(name)
            try:
                place.mkdir(exist_ok=True)
                if wanted.schemata:
                    (place / "schemata").write_text(wanted.schemata)
            except OSError as error:
                raise ValueError(f"class {name!r}: {self._reason() or error.strerror}") from error

    def _place(self, name: str) -> Path:
        return self._root if name in ("", ROOT_CLASS) else self._root / name

    def _reason(self) -> str:
        try:
            text = _text(self._root / "info" / "last_cmd_status")
        except OSError:
            return ""
        return "" if text == "ok" else text


def mounted(mounts: str) -> Resctrl | None:
    """Return the resctrl that a /proc/mounts text lists, None where there is none."""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 3 and fields[2] == "resctrl":
            return Resctrl(Path(fields[1]), frozenset(fields[3].split(",")))
    return None


def _ids(schemata: str) -> dict[str, tuple[int, ...]]:
    """Return the ids that each line of the root's schemata speaks of: `L3:0=fff;1=fff`."""
    found = {}
    for line in schemata.splitlines():
        name, _, values = line.strip().partition(":")
        if values:
            found[name.strip()] = tuple(int(value.partition("=")[0]) for value in values.split(";"))
    return found


def _text(path: Path) -> str:
    return path.read_text().strip()
