"""The node's CDI specs and files of classes: found, kept, read again when they change."""

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.config.model import Runtime
from bulkhead.errors import FailedPrecondition, NotFound
from sandbox_svc import hardware, resctrl
from sandbox_svc.cdi_registry import CdiRegistry
from sandbox_svc.hardware import ConfiguredHardware
from sandbox_svc.oci import blockio, cdi_spec, rdt, rdt_cache
from sandbox_svc.oci.rdt_cache import CacheInfo


def spec(place: Path, value: str, kind: str = "v.com/c", **more: object) -> None:
    """Write a file that defines the device `a`, which sets V to a value."""
    place.parent.mkdir(exist_ok=True)
    devices = [{"name": "a", "containerEdits": {"env": [f"V={value}"]}}]
    scratch = place.with_suffix(".tmp")
    scratch.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": kind, "devices": devices, **more}))
    scratch.rename(place)


def test_later_directories_win(tmp_path: Path) -> None:
    """A device that two directories define is the later one's, and conflicts of the earlier one are settled by it."""
    registry = CdiRegistry([str(tmp_path / "1"), str(tmp_path / "2")])
    spec(tmp_path / "1" / "a.json", "first")
    assert registry.edits(["v.com/c=a"]).env == ("V=first",)
    spec(tmp_path / "1" / "b.yaml", "other")
    with pytest.raises(NotFound, match=r"defined more than once: .*a\.json.*b\.yaml"):
        registry.edits(["v.com/c=a"])
    spec(tmp_path / "2" / "c.json", "second")
    assert registry.edits(["v.com/c=a"]).env == ("V=second",)


def test_changes_are_seen(tmp_path: Path) -> None:
    """A file that is changed, removed, or appears with its directory counts at once."""
    place = tmp_path / "late" / "a.json"
    registry = CdiRegistry([str(place.parent)])
    with pytest.raises(NotFound, match=f"v.com/c=a is not defined in {place.parent}"):
        registry.edits(["v.com/c=a"])
    for value in ("1", "2"):
        spec(place, value)
        assert registry.edits(["v.com/c=a"]).env == (f"V={value}",)
    place.unlink()
    with pytest.raises(NotFound):
        registry.edits(["v.com/c=a"])


def test_a_broken_file_costs_no_other_its_devices(tmp_path: Path) -> None:
    """What is wrong with a file is told to those that miss a device, and to nobody else."""
    spec(tmp_path / "a.json", "1")
    (tmp_path / "b.yaml").write_text("cdiVersion: 0.6.0\nkind: v.com/d\ndevices: {}\n")
    (tmp_path / "c.yaml").symlink_to("/nonexistent")
    (tmp_path / "d.txt").write_text("not a spec")
    os.mkfifo(tmp_path / "e.json")
    registry = CdiRegistry([str(tmp_path)])
    assert registry.edits(["v.com/c=a"]).env == ("V=1",)
    with pytest.raises(NotFound, match=r"v\.com/d=a is not defined.*b\.yaml: line 3: devices: want a list"):
        registry.edits(["v.com/d=a"])


def test_a_files_own_edits_are_made_once(tmp_path: Path) -> None:
    """Edits of the whole file come once, before the first of its devices."""
    devices = [{"name": name, "containerEdits": {"env": [f"{name.upper()}=1"]}} for name in "ab"]
    spec(tmp_path / "a.json", "", containerEdits={"env": ["ALL=1"]}, devices=devices)
    assert CdiRegistry([str(tmp_path)]).edits(["v.com/c=b", "v.com/c=a"]).env == ("ALL=1", "B=1", "A=1")


def test_a_file_without_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the limit is refused, not read."""
    monkeypatch.setattr("sandbox_svc.cdi_registry.MAX_SIZE", 10)
    spec(tmp_path / "a.json", "1")
    assert "more than 10 bytes" in CdiRegistry([str(tmp_path)]).unusable()[tmp_path / "a.json"]


@given(st.binary(max_size=300))
def test_any_file_of_classes_is_read_or_refused(data: bytes) -> None:
    """Whatever a file of classes holds, it is classes or a ValueError."""
    for read in (blockio.read, lambda text: rdt.read(text, rdt.Info())):
        with contextlib.suppress(ValueError):
            read(data)


@given(st.binary(max_size=300))
def test_any_cdi_spec_is_read_or_refused(data: bytes) -> None:
    """Whatever a spec file holds, it is a spec or a ValueError."""
    with contextlib.suppress(ValueError):
        cdi_spec.read(data)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
NAMES = st.sampled_from(
    [
        "cdiVersion",
        "kind",
        "devices",
        "containerEdits",
        "name",
        "env",
        "deviceNodes",
        "path",
        "mounts",
        "hooks",
        "intelRdt",
    ]
)


@given(
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5)),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5)),
)
def test_any_json_is_a_cdi_spec_or_refused(devices: object, edits: object) -> None:
    """Members of every type in every place are a spec or a ValueError."""
    document = {"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": devices, "containerEdits": edits}
    with contextlib.suppress(ValueError):
        cdi_spec.read(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("text", "number"),
    [("50M", 50_000_000), ("1.5Ki", 1536), (".5k", 500), ("1m", 1), ("100n", 1), ("1e3", 1000), ("5E-1", 1),
     ("2E", 2 * 10**18), ("7.", 7)],
)  # fmt: skip
def test_quantities(text: str, number: int) -> None:
    """A quantity is a whole number, rounded up (apimachinery, Quantity.Value)."""
    assert blockio.quantity(text) == number


@pytest.mark.parametrize("text", ["", "M", "5 M", "5MB", "0x5", "5ki", "1e", "--5"])
def test_what_is_no_quantity(text: str) -> None:
    """Anything else is an error."""
    with pytest.raises(ValueError, match="expected a quantity"):
        blockio.quantity(text)


def test_files_of_classes_that_cannot_be_used(tmp_path: Path) -> None:
    """A container in a class is told what is wrong with the file, or with the class."""
    path = tmp_path / "classes"
    path.write_text("Classes: {light: [{Weight: 5}], good: [{Weight: 500}]}\n")
    found = ConfiguredHardware(Runtime(blockio_config_file=str(path)))
    assert found.blockio_enabled
    assert found.block_io("good") == {"weight": 500}
    with pytest.raises(FailedPrecondition, match="want 10 to 1000, got 5"):
        found.block_io("light")
    with pytest.raises(FailedPrecondition, match="no such class, expected one of: good, light"):
        found.block_io("other")
    path.write_text("Class: {}\n")
    broken = ConfiguredHardware(Runtime(blockio_config_file=str(path)))
    assert not broken.blockio_enabled
    with pytest.raises(FailedPrecondition, match=f"{path}: line 1: document: unknown field 'Class'"):
        broken.block_io("good")
    with pytest.raises(FailedPrecondition, match="blockio_config_file"):
        ConfiguredHardware(Runtime()).block_io("good")


def machine(root: Path) -> resctrl.Resctrl:
    (root / "info" / "L3").mkdir(parents=True)
    (root / "schemata").write_text("L3:0=ff\n")
    (root / "tasks").touch()
    (root / "info" / "L3" / "cbm_mask").write_text("ff\n")
    (root / "info" / "L3" / "min_cbm_bits").write_text("1\n")
    found = resctrl.mounted(f"resctrl {root} resctrl rw 0 0\n")
    assert found is not None
    return found


def test_rdt_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes may be kept from pods or from containers; groups that somebody else made are good, and stay."""
    kernel = machine(tmp_path / "resctrl")
    (tmp_path / "resctrl" / "foreign").mkdir()
    (tmp_path / "resctrl" / "foreign" / "tasks").touch()
    path = tmp_path / "rdt.yaml"
    path.write_text(
        "partitions: {p: {l3Allocation: 100%, classes: {"
        "own: {l3Allocation: 50%, kubernetes: {denyPodAnnotation: true}}, any: {"
        "kubernetes: {denyContainerAnnotation: true}}}}}\n"
    )
    monkeypatch.setattr(resctrl, "mounted", lambda mounts: kernel)
    found = ConfiguredHardware(Runtime(rdt_config_file=str(path)))
    assert found.rdt_enabled
    assert (tmp_path / "resctrl" / "own" / "schemata").read_text() == "L3:0=f\n"
    for name in ("own", "any"):
        (tmp_path / "resctrl" / name / "tasks").touch()  # the kernel makes it with the directory
    found.check_rdt_class("own", from_pod=False)
    found.check_rdt_class("any", from_pod=True)
    found.check_rdt_class("foreign", from_pod=True)
    found.check_rdt_class(rdt.ROOT_CLASS, from_pod=True)
    for name, from_pod in (("own", True), ("any", False), ("none", True), ("../resctrl/own", False), ("info", True)):
        with pytest.raises(FailedPrecondition):
            found.check_rdt_class(name, from_pod=from_pod)


def test_no_resctrl(tmp_path: Path) -> None:
    """Without a mounted resctrl the container that asks for a class is told so."""
    path = tmp_path / "rdt.yaml"
    path.write_text("partitions: {}\n")
    if resctrl.mounted(Path("/proc/mounts").read_text()) is not None:
        pytest.skip("probe: /proc/mounts lists a resctrl")
    found = ConfiguredHardware(Runtime(rdt_config_file=str(path)))
    assert not found.rdt_enabled
    with pytest.raises(FailedPrecondition, match="resctrl is not mounted"):
        found.check_rdt_class("gold", from_pod=True)


CACHES = st.builds(
    lambda bits, least, ids: CacheInfo(tuple(range(ids)), (1 << bits) - 1, min(least, bits)),
    st.integers(2, 32), st.integers(1, 3), st.integers(1, 3),
)  # fmt: skip


@given(CACHES, st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 100))
def test_shares_of_a_cache(cache: CacheInfo, wanted: list[int], part: int) -> None:
    """Shares in percent never overlap and stay in the cache; a part of one stays in it, one block of enough ones."""
    asked = {
        f"p{index}": {number: rdt_cache.Allocation(unified=rdt_cache.Percent(0, share)) for number in cache.ids}
        for index, share in enumerate(wanted)
    }
    try:
        shares = rdt_cache.partition("L3", asked, cache)
    except ValueError:
        assert sum(wanted) > 100 or cache.mask.bit_count() * sum(wanted) // 100 < len(wanted) * cache.min_bits * 2
        return
    for number in cache.ids:
        taken = 0
        for share in shares.values():
            mask = share[number].unified
            assert isinstance(mask, int)
            assert not mask & taken
            assert mask & cache.mask == mask
            taken |= mask
    some = {number: rdt_cache.Allocation(unified=rdt_cache.Percent(0, part)) for number in cache.ids}
    for share in shares.values():
        [line] = rdt_cache.lines("L3", some, share, cache)
        for value in line.removeprefix("L3:").split(";"):
            cache_id, _, text = value.partition("=")
            mask, base = int(text, 16), share[int(cache_id)].unified
            assert isinstance(base, int)
            assert mask | base == base
            assert mask.bit_count() >= cache.min_bits


def test_block_devices(tmp_path: Path) -> None:
    """Only block devices count; a pattern that is no absolute path finds none."""
    (tmp_path / "file").touch()
    assert list(hardware.block_devices([f"{tmp_path}/*", "/dev/null", "dev/*"])) == []
