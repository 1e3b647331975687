"""Adjustments applied by Bulkhead and by NRI's own generator (pkg/runtime-tools/generate) make the same specs.

Four differences are deliberate and left out of what is drawn: the generator forgets a seccomp policy's default errno
and all limits of memory but one, adds a second rlimit of a type that is there, which runtimes refuse, and keeps a limit
of processes that a plugin lifts.
"""

import copy
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.proto.containerd import nri_pb2 as nri
from conformance.build import build
from sandbox_svc.nri.apply import Abilities, apply

pytestmark = pytest.mark.root

ABLE = Abilities(
    inject_cdi=lambda spec, names: None,
    blockio_class=lambda name: {"weight": len(name)},
    propagation=lambda source: "private",
    oom_score=lambda score: score,
)

words = st.sampled_from(["a", "b", "c", "d"])
small = st.integers(0, 5)
numbers = small.map(lambda value: {"value": str(value)})
uint32 = small.map(lambda value: {"value": value})
paths = st.sampled_from(["/a", "/a/b", "/proc", "/dev/shm", "/c/d/e"])


def marked(names: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(names, names.map(lambda name: f"-{name}"))


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def unique(entry: st.SearchStrategy[Any], key: str, most: int = 3) -> st.SearchStrategy[list[Any]]:
    """Entries as a merge leaves them: one for each name."""
    return st.lists(entry, max_size=most, unique_by=lambda found: found[key].removeprefix("-"))


def table(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Entries of a map as a merge leaves them: no name is both set and removed."""
    drawn = st.dictionaries(marked(words), values, max_size=3)
    return drawn.filter(lambda found: len({name.removeprefix("-") for name in found}) == len(found))


hook = st.fixed_dictionaries({"path": paths}, optional={"args": st.lists(words), "timeout": st.just({"value": "7"})})
hooks = some(**{
    kind: st.lists(hook, max_size=2)
    for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
})  # fmt: skip
device = st.fixed_dictionaries(
    {"path": st.sampled_from(["/dev/a", "/dev/b", "/dev/null"]), "type": st.sampled_from(["c", "b"])},
    optional={"major": small.map(str), "minor": small.map(str), "fileMode": uint32, "uid": uint32, "gid": uint32},
)
resources = some(
    cpu=some(
        shares=numbers, quota=numbers, period=numbers, realtimeRuntime=numbers, realtimePeriod=numbers,
        cpus=st.sampled_from(["", "0-1"]), mems=st.sampled_from(["", "0"]),
    ),
    memory=some(limit=numbers),
    hugepageLimits=unique(st.fixed_dictionaries({"pageSize": words, "limit": small.map(str)}), "pageSize"),
    unified=st.dictionaries(words, words, max_size=2),
    pids=st.integers(1, 9).map(lambda value: {"limit": str(value)}),
    devices=st.lists(
        st.fixed_dictionaries({"allow": st.booleans()}, optional={"type": words, "major": numbers, "access": words}),
        max_size=2,
    ),
    blockioClass=st.sampled_from(["", "gold"]).map(lambda name: {"value": name}),
    rdtClass=st.sampled_from(["", "gold"]).map(lambda name: {"value": name}),
)  # fmt: skip
seccomp = st.fixed_dictionaries(
    {"defaultAction": words},
    optional={
        "architectures": st.lists(words, max_size=2),
        "flags": st.lists(words, max_size=2),
        "listenerPath": words,
        "listenerMetadata": words,
        "syscalls": st.lists(
            st.fixed_dictionaries(
                {"names": st.lists(words, min_size=1, max_size=2), "action": words},
                optional={
                    "errnoRet": uint32,
                    "args": st.lists(
                        st.fixed_dictionaries(
                            {"index": small, "value": small.map(str), "valueTwo": small.map(str), "op": words}
                        ),
                        max_size=2,
                    ),
                },
            ),
            max_size=2,
        ),
    },
)
linux = some(
    devices=unique(device, "path"),
    resources=resources,
    cgroupsPath=st.sampled_from(["", "/x/y", "a.slice:b:c"]),
    oomScoreAdj=numbers,
    ioPriority=st.fixed_dictionaries(
        {"class": st.sampled_from(["IOPRIO_CLASS_NONE", "IOPRIO_CLASS_BE"])}, optional={"priority": small}
    ),
    seccompPolicy=seccomp,
    namespaces=unique(
        st.fixed_dictionaries({"type": marked(st.sampled_from(["pid", "uts", "cgroup"]))}, optional={"path": paths}),
        "type",
    ),
    sysctl=table(words),
    netDevices=st.dictionaries(words, some(name=words), max_size=2),
    scheduler=st.fixed_dictionaries(
        {"policy": st.sampled_from(["SCHED_NONE", "SCHED_BATCH", "SCHED_DEADLINE"])},
        optional={"nice": small, "flags": st.just(["SCHED_FLAG_RECLAIM"]), "runtime": small.map(str)},
    ),
    rdt=some(
        closId=words.map(lambda name: {"value": name}),
        schemata=st.lists(words, max_size=2).map(lambda found: {"value": found}),
        enableMonitoring=st.booleans().map(lambda value: {"value": value}),
        remove=st.booleans(),
    ),
    memoryPolicy=st.fixed_dictionaries(
        {"mode": st.sampled_from(["MPOL_DEFAULT", "MPOL_BIND"]), "nodes": st.sampled_from(["", "0-1"])},
        optional={"flags": st.just(["MPOL_F_STATIC_NODES"])},
    ),
)
adjustments = some(
    annotations=table(words),
    mounts=unique(
        st.fixed_dictionaries(
            {"destination": marked(paths)},
            optional={"type": words, "source": paths, "options": st.lists(words, max_size=2)},
        ),
        "destination",
    ),
    env=unique(st.fixed_dictionaries({"key": marked(words)}, optional={"value": words}), "key"),
    hooks=hooks,
    linux=linux,
    rlimits=unique(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["RLIMIT_CORE", "RLIMIT_NPROC"]), "hard": st.just("9"), "soft": small.map(str)}
        ),
        "type",
    ),
    args=st.lists(words, max_size=2),
)

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["app"],
        "env": ["PATH=/bin", "a=1", "b=2"],
        "cwd": "/",
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 10}],
        "oomScoreAdj": 1,
    },
    "annotations": {"a": "1", "kept": "2"},
    "hooks": {"poststop": [{"path": "/first"}]},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
    ],
    "linux": {
        "devices": [{"path": "/dev/a", "type": "c", "major": 9, "minor": 9}],
        "namespaces": [{"type": "pid"}, {"type": "uts", "path": "/proc/1/ns/uts"}],
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": 2}, "blockIO": {"weight": 1}},
        "cgroupsPath": "/pods/c",
        "sysctl": {"a": "1"},
        "intelRdt": {"closID": "old"},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
    },
}


@pytest.fixture(scope="module")
def generator() -> Iterator["subprocess.Popen[str]"]:
    """The Go program, one line in and one out."""
    program = build("nrigenerate")["nrigenerate"]
    process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def theirs(generator: "subprocess.Popen[str]", adjustment: dict[str, Any]) -> dict[str, Any]:
    """Return the spec that the generator makes."""
    assert generator.stdin is not None
    assert generator.stdout is not None
    generator.stdin.write(json.dumps({"spec": SPEC, "adjust": adjustment}) + "\n")
    generator.stdin.flush()
    answer = json.loads(generator.stdout.readline())
    assert "error" not in answer, answer
    found: dict[str, Any] = answer["spec"]
    return found


def without_nothing(value: Any) -> Any:
    """Leave out what is empty, as Go's omitempty does: numbers and booleans there, strings, arrays and objects here."""
    if isinstance(value, dict):
        found = {key: without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item not in ("", [], {}, None)}
    return [without_nothing(item) for item in value] if isinstance(value, list) else value


def comparable(spec: dict[str, Any]) -> dict[str, Any]:
    """Bring a spec into a form in which only what runtimes tell apart differs."""
    found: dict[str, Any] = without_nothing(spec)
    for rdt in [found["linux"].get("intelRdt", {})]:
        if rdt.get("enableMonitoring") is False:
            del rdt["enableMonitoring"]
        if not rdt:
            found["linux"].pop("intelRdt", None)
    for rule in (found["linux"].get("seccomp") or {}).get("syscalls") or ():
        for argument in rule.get("args") or ():
            if argument.get("valueTwo") == 0:
                del argument["valueTwo"]
    for part in (found["process"].get("ioPriority"), found["process"].get("scheduler")):
        for name in ("priority", "nice", "runtime"):
            if part is not None and part.get(name) == 0:
                del part[name]
    return found


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(adjustment=adjustments)
def test_the_generator_agrees(generator: "subprocess.Popen[str]", adjustment: dict[str, Any]) -> None:
    """Whatever plugins ask for, the spec is the one that containerd and CRI-O would start the container with."""
    spec = copy.deepcopy(SPEC)
    apply(spec, json_format.ParseDict(adjustment, nri.ContainerAdjustment()), ABLE)
    assert comparable(spec) == comparable(theirs(generator, adjustment))
