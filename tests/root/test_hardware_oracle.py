"""CDI specs, block I/O classes and RDT classes, read by us and by the Go libraries that containerd reads them with."""

import copy
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.config.model import Runtime
from bulkhead.errors import BulkheadError
from conformance.build import build
from sandbox_svc.cdi_registry import CdiRegistry
from sandbox_svc.hardware import ConfiguredHardware, block_devices
from sandbox_svc.oci import blockio, cdi, cdi_spec, rdt
from sandbox_svc.resctrl import mounted

pytestmark = pytest.mark.root

Ask = Callable[..., dict[str, Any]]

#: What containers look like before they get a device.
BASES: dict[str, dict[str, Any]] = {
    "root": {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin", "A=0"], "cwd": "/"},
        "linux": {"cgroupsPath": "/c"},
    },
    "user": {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 7, "gid": 8, "additionalGids": [44]}, "env": ["A=0"], "cwd": "/"},
        "mounts": [
            {"destination": "/a/b/c", "source": "/x", "type": "bind"},
            {"destination": "/dev/shm", "source": "shm"},
        ],
        "hooks": {"prestart": [{"path": "/first"}]},
        "linux": {
            "namespaces": [{"type": "user"}],
            "devices": [{"path": "/dev/null", "type": "c", "major": 9, "minor": 9}],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "intelRdt": {"closID": "before"},
        },
    },
}


@pytest.fixture(scope="module")
def ask() -> Ask:
    program = build("hardware")["hardware"]

    def run(*arguments: str | Path, request: object = None) -> dict[str, Any]:
        done = subprocess.run(
            [program, *arguments], input=json.dumps(request), capture_output=True, text=True, check=True, timeout=60
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def devices(document: dict[str, Any]) -> Iterator[str]:
    for device in document["devices"]:
        yield f"{document['kind']}={device['name']}"


WHOLE: dict[str, Any] = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/net.class",
    "annotations": {"a": "b"},
    "containerEdits": {"env": ["A=1", "B=2"], "additionalGids": [0, 44, 45]},
    "devices": [
        {
            "name": "0",
            "containerEdits": {
                "deviceNodes": [
                    {"path": "/dev/null"},
                    {"path": "/dev/other", "hostPath": "/dev/zero", "permissions": "r", "uid": 5, "gid": 0},
                    {"path": "/dev/none", "type": "b", "major": 250, "minor": 1, "permissions": "none"},
                    {"path": "/dev/moded", "hostPath": "/dev/full", "fileMode": 384},
                ],
                "netDevices": [{"hostInterfaceName": "eth9", "name": "net9"}],
                "hooks": [
                    {"hookName": name, "path": "/hook", "args": ["hook", name], "env": ["H=1"], "timeout": 5}
                    for name in cdi_spec.HOOKS
                ],
                "mounts": [
                    {"hostPath": "/h", "containerPath": "/a/b"},
                    {"hostPath": "/h", "containerPath": "/dev/shm", "options": ["rbind", "ro"], "type": "bind"},
                    {"hostPath": "tmpfs", "containerPath": "/t", "type": "tmpfs"},
                ],
                "intelRdt": {"closID": "c", "schemata": ["L3:0=f"], "enableMonitoring": True},
            },
        },
        {"name": "second:dev", "annotations": {"x": "y"}, "containerEdits": {"env": ["A=2"]}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("base", BASES)
def test_a_device_with_everything(ask: Ask, tmp_path: Path, base: str) -> None:
    """Two devices that use every field of the format change a spec exactly as the CDI's own library does."""
    (tmp_path / "a.json").write_text(json.dumps(WHOLE))
    names = list(devices(WHOLE))
    theirs = ask("cdi", tmp_path, request={"spec": BASES[base], "devices": names})
    ours = copy.deepcopy(BASES[base])
    cdi.inject(ours, names, ConfiguredHardware(Runtime(cdi_spec_dirs=(str(tmp_path),))))
    assert ours == theirs["spec"]


#: Values for each scalar field, right and wrong.
VALUES: dict[str, list[Any]] = {
    "cdiVersion": ["0.2.0", "0.3.0", "0.4.0", "v0.5.0", "0.6.0", "0.7.0", "1.0.0", "1.1.0", "1.2.0", "", None, 1],
    "kind": ["v.com/c", "v.com/c.d", "v/c/d", "/c", "v.com", "9v/c", "v-/c", "v_x/c-1", "v é/c", None],
    "name": ["0", "a", "a:b", "a b", "-a", "a.", "", None, 5, "a/b"],
    "path": ["/dev/null", "/dev/zero", "/dev", "/nonexistent", "", None],
    "hostPath": ["/dev/null", "/dev/full", "", None],
    "type": ["b", "c", "u", "p", "x", "", None, "bind"],
    "permissions": ["rw", "none", "rwx", "", None, "rrr"],
    "major": [0, 1, -1, "1", None, 1 << 40, 1.5],
    "minor": [0, 3],
    "fileMode": [0, 438, "0600", -1],
    "uid": [0, 1000, -1, 1 << 32],
    "gid": [0, 7, "x"],
    "hookName": ["prestart", "poststop", "never", "", None],
    "timeout": [0, -3, "1"],
    "hostInterfaceName": ["eth0", "eth1", ""],
    "containerPath": ["/a", "/a/b/c/", "relative", "", None],
    "closID": ["c", "/", "a/b", ".", "x" * 4096, ""],
    "enableMonitoring": [True, False, "yes", 1],
    "env": [["A=1"], ["=1"], ["A"], [], None, "A=1", [1]],
    "args": [["a"], [], [5, True], {"a": 1}],
    "options": [["ro"], [], ["bind"], [["ro"]]],
    "schemata": [["L3:0=f"], [], None],
    "additionalGids": [[1, 2], [0], [], [-1], ["5"]],
    "annotations": [{"a": "b"}, {}, None, {"a": 1}, {"a": ["b"]}],
    "l3CacheSchema": ["L3:0=f"],
    "memBwSchema": ["MB:0=10"],
}
EDITS: dict[str, tuple[str, ...]] = {
    "deviceNodes": ("path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"),
    "netDevices": ("hostInterfaceName", "name"),
    "hooks": ("hookName", "path", "args", "env", "timeout"),
    "mounts": ("hostPath", "containerPath", "options", "type"),
}


def some(choose: random.Random, names: tuple[str, ...], wrong: float = 0.02) -> dict[str, Any]:
    """Return an object with some of these fields; the first value of each is right."""
    found = {}
    for index, name in enumerate(names):
        if choose.random() < (0.97 if index < 2 else 0.4):
            found[name] = choose.choice(VALUES[name]) if choose.random() < wrong * 3 else VALUES[name][0]
    if choose.random() < wrong / 3:
        found["surprise"] = 1
    return found


def edits(choose: random.Random) -> Any:
    if choose.random() < 0.04:
        return choose.choice([None, {}, [], "x"])
    found: dict[str, Any] = some(choose, ("env", "additionalGids"))
    for name, fields in EDITS.items():
        if choose.random() < 0.3:
            found[name] = [some(choose, fields) for _ in range(choose.randint(0, 2))]
    if choose.random() < 0.2:
        found["intelRdt"] = some(choose, ("closID", "l3CacheSchema", "memBwSchema", "schemata", "enableMonitoring"))
    return found


def document(choose: random.Random, number: int) -> dict[str, Any]:
    found = some(choose, ("cdiVersion", "kind"))
    if choose.random() < 0.75:
        found["cdiVersion"] = "1.1.0"
    if found.get("kind") == "v.com/c":
        found["kind"] = f"v.com/c{number}"  # what one file defines must not hide what another says
    if choose.random() < 0.3:
        found["annotations"] = choose.choice(VALUES["annotations"])
    if choose.random() < 0.4:
        found["containerEdits"] = edits(choose)
    found["devices"] = [
        {**some(choose, ("name", "annotations"), 0.03), "containerEdits": edits(choose)}
        for _ in range(choose.choice([0, 1, 1, 1, 1, 1, 2]))
    ]
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_same_files_are_good(ask: Ask, tmp_path: Path, seed: int) -> None:
    """Of 250 files with random mistakes the library and we refuse the same; from the rest specs come out alike."""
    choose = random.Random(seed)
    written: dict[str, dict[str, Any]] = {}
    for number in range(250):
        found = document(choose, number)
        place = tmp_path / f"{number}.json"
        place.write_text(json.dumps(found))
        written[str(place)] = found
    theirs = ask("cdi", tmp_path, request={"spec": {}, "devices": []})
    refused = {str(path): why for path, why in CdiRegistry([str(tmp_path)]).unusable().items()}
    hardware = ConfiguredHardware(Runtime(cdi_spec_dirs=(str(tmp_path),)))
    for path in refused.keys() ^ {path for path, why in theirs["files"].items() if "conflicting" not in why[0]}:
        pytest.fail(f"{json.dumps(written[path])}\nours: {refused.get(path)}\ntheirs: {theirs['files'].get(path)}")
    assert 50 < len(refused) < 200
    compared = 0
    for path, found in written.items():
        if path in refused or theirs["files"].get(path):
            continue
        names = list(devices(found))
        spec = copy.deepcopy(BASES["user" if choose.random() < 0.5 else "root"])
        answer = ask("cdi", tmp_path, request={"spec": spec, "devices": names}) if compared < 40 else None
        if answer is None:
            break
        compared += 1
        try:
            cdi.inject(spec, names, hardware)
        except BulkheadError as error:
            assert answer.get("error"), f"{json.dumps(found)}\n{error}"
        else:
            assert "error" not in answer, f"{json.dumps(found)}\n{answer['error']}"
            assert spec == answer["spec"], json.dumps(found)
    assert compared > 20


YAML_FILES = {
    "plain": "cdiVersion: 0.6.0\nkind: v.com/c\ndevices:\n- name: yes\n  containerEdits: {env: [A=1]}\n",
    "octal": "cdiVersion: 0.6.0\nkind: v.com/d\ndevices:\n- name: n\n  containerEdits:\n    deviceNodes:\n"
    "    - {path: /dev/null, fileMode: 0600, uid: 0x10, gid: 0o17}\n",
    "merge": "cdiVersion: 0.6.0\nkind: v.com/e\ndevices:\n- &x\n  name: n\n  containerEdits: {env: [A=1]}\n"
    "- <<: *x\n  name: m\n",
    "twice": "cdiVersion: 0.6.0\nkind: v.com/f\nkind: v.com/g\ndevices: []\n",
    "two-documents": "cdiVersion: 0.6.0\nkind: v.com/h\ndevices:\n- name: n\n  containerEdits: {env: [A=1]}\n---\n[\n",
    "empty": "",
    "comment": "# nothing\n",
    "list": "- a\n",
    "anchor": "cdiVersion: 0.6.0\nkind: v.com/i\ndevices:\n- name: n\n  containerEdits: &e {env: [A=1]}\n"
    "- name: m\n  containerEdits: *e\n",
    "tabs": "cdiVersion: 0.6.0\nkind:\tv.com/j\ndevices:\n- name: n\n  containerEdits: {env: [A=1]}\n",
    "null": "cdiVersion: 0.6.0\nkind: v.com/k\ncontainerEdits: ~\ndevices:\n- name: n\n"
    "  containerEdits: {env: [A=1], mounts: }\n",
}


def test_yaml_means_the_same(ask: Ask, tmp_path: Path) -> None:
    """Files in YAML, with words, octal numbers, anchors and merges, are read as the library reads them."""
    for name, text in YAML_FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    theirs = ask("cdi", tmp_path, request={"spec": {}, "devices": []})
    refused = {str(path): why for path, why in CdiRegistry([str(tmp_path)]).unusable().items()}
    hardware = ConfiguredHardware(Runtime(cdi_spec_dirs=(str(tmp_path),)))
    assert refused.keys() == theirs["files"].keys(), (refused, theirs["files"])
    names = ["v.com/c=yes", "v.com/d=n", "v.com/e=m", "v.com/h=n", "v.com/i=m", "v.com/j=n", "v.com/k=n"]
    ours = copy.deepcopy(BASES["root"])
    cdi.inject(ours, names, hardware)
    assert ours == ask("cdi", tmp_path, request={"spec": BASES["root"], "devices": names})["spec"]


BLOCKIO = """
Classes:
  slow:
  - Weight: 80
  - Devices: [{device}, /dev/nothing*]
    ThrottleReadBps: 50M
    ThrottleWriteBps: 1.5Mi
    ThrottleReadIOPS: 10k
    ThrottleWriteIOPS: 5e2
    Weight: "50"
  - devices: [{device}]
    throttlereadbps: 100m
  fast: [{{Weight: 1000}}]
  nothing: []
"""


def block_device() -> str:
    found = sorted(path for path in Path("/dev").iterdir() if path.is_block_device() and not path.is_symlink())
    if not found:
        pytest.skip("no block device in /dev")
    return str(found[0])


def test_block_io_classes(ask: Ask, tmp_path: Path) -> None:
    """Classes become the same linux.resources.blockIO as goresctrl makes of them."""
    path = tmp_path / "classes.yaml"
    path.write_text(BLOCKIO.format(device=block_device()))
    ours = {name: blockio.block_io(found, block_devices) for name, found in blockio.read(path.read_bytes()).items()}
    assert ours == ask("blockio", path)["classes"]


@pytest.mark.parametrize(
    "entry",
    ["Weight: 9", "Weight: 1001", "Weight: x", "ThrottleReadBps: 1", "Wait: 5", "{Devices: [/x], ThrottleReadBps: -1}"],
)
def test_block_io_classes_that_are_wrong(ask: Ask, tmp_path: Path, entry: str) -> None:
    """What goresctrl calls an error costs the class here, too."""
    path = tmp_path / "classes.yaml"
    path.write_text(f"Classes:\n  c:\n  - {entry}\n")
    assert ask("blockio", path)["error"]
    try:
        assert blockio.read(path.read_bytes())["c"].error
    except ValueError as error:
        assert "Wait" in entry, error


RDT_OPTIONS = "options: {l2: {optional: true}, mb: {optional: true}}\n"
RDT_FILES = {
    "percent": "partitions:\n  a:\n    l3Allocation: 60%\n    mbAllocation: [80%, 1000MBps]\n    classes:\n"
    "      gold: {l3Allocation: 100%, mbAllocation: [50%, 400MBps]}\n      silver: {l3Allocation: 50-100%}\n"
    "      bronze: {}\n  b:\n    l3Allocation: 40%\n    classes:\n      system/default: {l3Allocation: 30%}\n",
    "masks": "partitions:\n  a:\n    l3Allocation: {all: '0xf00', '1': 0-7}\n    classes:\n"
    "      gold: {l3Allocation: {all: '0x3', '1': 0-3}}\n",
    "many": "partitions:\n" + "".join(
        f"  p{n}:\n    l3Allocation: {share}%\n    classes: {{c{n}: {{l3Allocation: 70%}}}}\n"
        for n, share in enumerate((3, 40, 1, 17, 39))
    ),
    "split": "partitions:\n  a:\n    l3Allocation: {all: {unified: 60%, code: 50%, data: 100%}}\n    classes:\n"
    "      gold: {l3Allocation: {all: {unified: 100%, code: 40%, data: 100%}}}\n",
    "overlap": "partitions:\n  a: {l3Allocation: '0xff'}\n  b: {l3Allocation: '0xf0'}\n",
    "mixed": "partitions:\n  a: {l3Allocation: '0xff'}\n  b: {l3Allocation: 20%}\n",
    "over": "partitions:\n  a: {l3Allocation: 70%}\n  b: {l3Allocation: 40%}\n",
    "some": "partitions:\n  a: {l3Allocation: 70%}\n  b: {}\n",
    "outside": "partitions:\n  a:\n    l3Allocation: '0xf'\n    classes: {c: {l3Allocation: '0x1f'}}\n",
    "holes": "partitions:\n  a: {l3Allocation: '0x5'}\n",
    "not-asked": "partitions:\n  a:\n    classes: {c: {l3Allocation: 50%}}\n",
    "l2": "partitions:\n  a:\n    l2Allocation: 50%\n    classes: {c: {l2Allocation: 50%}}\n",
    "l2-optional": RDT_OPTIONS + "partitions:\n  a:\n    l2Allocation: 50%\n    classes: {c: {l2Allocation: 50%}}\n",
    "twice": "partitions:\n  a:\n    classes: {c: {}}\n  b:\n    classes: {c: {}}\n",
    "name": "partitions:\n  a:\n    classes: {a/b: {}}\n",
    "unit": "partitions:\n  a:\n    mbAllocation: [5]\n    classes: {c: {}}\n",
    "unknown": "partition: {}\n",
    "low-mb": "partitions:\n  a:\n    mbAllocation: [1%, 9MBps]\n    classes: {c: {mbAllocation: [50%, 5000MBps]}}\n",
}  # fmt: skip

#: Machines by name: files of resctrl's info directory, and the options of its mount.
MACHINES: dict[str, tuple[dict[str, str], str]] = {
    "percent": (
        {
            "schemata": "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n",
            "info/L3/cbm_mask": "fffff", "info/L3/min_cbm_bits": "2", "info/L3/shareable_bits": "0",
            "info/L3/num_closids": "16",
            "info/MB/bandwidth_gran": "10", "info/MB/delay_linear": "1", "info/MB/min_bandwidth": "10",
            "info/MB/num_closids": "8",
        },
        "rw,relatime",
    ),
    "split": (
        {
            "schemata": "L3CODE:0=fff;1=fff\nL3DATA:0=fff;1=fff\nMB:0=4294967295;1=4294967295\n",
            **{
                f"info/L3{kind}/{name}": value
                for kind in ("CODE", "DATA")
                for name, value in (
                    ("cbm_mask", "fff"), ("min_cbm_bits", "1"), ("shareable_bits", "0"), ("num_closids", "8"),
                )
            },
            "info/MB/bandwidth_gran": "10", "info/MB/delay_linear": "1", "info/MB/min_bandwidth": "10",
            "info/MB/num_closids": "8",
        },
        "rw,relatime,cdp,mba_MBps",
    ),
}  # fmt: skip


def machine(root: Path, name: str) -> Path:
    """Make what a resctrl looks like, and return a file that says it is mounted."""
    files, options = MACHINES[name]
    for path, text in {**files, "tasks": "", "info/last_cmd_status": "ok\n"}.items():
        place = root / "resctrl" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    mounts = root / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\nresctrl {root}/resctrl resctrl {options} 0 0\n")
    return mounts


def schemata(root: Path) -> dict[str, str]:
    place = root / "resctrl"
    return {str(path.parent.relative_to(place)): path.read_text() for path in place.glob("**/schemata")}


@pytest.mark.parametrize("kind", MACHINES)
@pytest.mark.parametrize("name", RDT_FILES)
def test_rdt_classes(ask: Ask, tmp_path: Path, name: str, kind: str) -> None:
    """Classes get the same schemata that goresctrl writes, on a processor of each kind; wrong files are the same."""
    path = tmp_path / "classes.yaml"
    path.write_text(RDT_FILES[name])
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    error = ask("rdt", path, machine(theirs, kind)).get("error")
    kernel = mounted(machine(ours, kind).read_text())
    assert kernel is not None
    try:
        kernel.set_up(rdt.read(path.read_bytes(), kernel.info()))
    except ValueError as refusal:
        assert error is not None, refusal
    else:
        assert error is None, error
        assert schemata(ours) == schemata(theirs)
