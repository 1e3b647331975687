import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bulkhead import command
from bulkhead.config.model import Cni, Config, Runtime, RuntimeHandler
from bulkhead.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from sandbox_svc.cni import AddResult, Attachment, Manager, managers, plugin
from sandbox_svc.cni import manager as manager_module

Answer = Callable[[str, str, dict[str, Any]], tuple[int, str]]

RESULT = {"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24", "interface": 0}]}


class Plugins:
    """Records every plugin run; answers ADD with what it was given as prevResult, or with RESULT."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        self.answer: Answer = lambda verb, kind, conf: (0, json.dumps(conf.get("prevResult", RESULT)))

    @property
    def verbs(self) -> list[str]:
        return [f"{verb} {kind}" for verb, kind, _, _ in self.calls]

    def install(self, *names: str) -> None:
        for name in names:
            (self.directory / name).touch(mode=0o755)

    def run(self, args: list[str], *, timeout: float, input: bytes, env: Mapping[str, str]) -> command.Result:
        assert 0 < timeout <= 180
        conf, variables = json.loads(input), {name: env[name] for name in env if name.startswith("CNI_")}
        kind = Path(args[0]).name
        self.calls.append((env["CNI_COMMAND"], kind, conf, variables))
        status, output = self.answer(env["CNI_COMMAND"], kind, conf)
        return command.Result(tuple(args), status, output.encode(), b"complaint" if status else b"")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    (tmp_path / "bin").mkdir()
    fake = Plugins(tmp_path / "bin")
    fake.install("bridge", "portmap", "bandwidth", "tuning")
    monkeypatch.setattr(command, "run", fake.run)
    return fake


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    return tmp_path / "net.d"


def write(conf_dir: Path, *kinds: str, file: str = "10-net.conflist", **more: Any) -> None:
    conf_dir.mkdir(exist_ok=True)
    entries = [
        {"type": kind, "capabilities": {"portMappings": True}} if kind == "portmap" else {"type": kind}
        for kind in kinds
    ]
    (conf_dir / file).write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": entries} | more))


def manager(conf_dir: Path, **changes: Any) -> Manager:
    return Manager(Cni(bin_dirs=(str(conf_dir.parent / "bin"),), conf_dir=str(conf_dir), **changes), timeout=180)


POD = Attachment("id", "/does/not/exist", "ns", "pod", "uid")
PORTS = Attachment("id", "/does/not/exist", capabilities={"portMappings": [{"hostPort": 80}], "dns": {"servers": []}})


def test_a_chain_hands_results_on(plugins: Plugins, conf_dir: Path) -> None:
    """Each plugin gets the result before it, the network's head, the CNI variables and its declared capabilities."""
    write(conf_dir, "bridge", "portmap")
    result = manager(conf_dir).add(PORTS)
    assert plugins.verbs == ["ADD bridge", "ADD portmap"]
    _, _, first, variables = plugins.calls[0]
    _, _, second, _ = plugins.calls[1]
    assert (first["name"], first["cniVersion"], "prevResult" in first) == ("net", "1.0.0", False)
    assert second["prevResult"] == {**RESULT, "cniVersion": "1.0.0"}
    assert second["runtimeConfig"] == {"portMappings": [{"hostPort": 80}]}
    assert "runtimeConfig" not in first
    assert variables == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "id",
        "CNI_NETNS": "/does/not/exist",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": PORTS.args,
        "CNI_PATH": str(plugins.directory),
    }
    assert result.ip == "10.0.0.2"


def test_plugins_without_work_are_not_run(plugins: Plugins, conf_dir: Path) -> None:
    """portmap without ports, bandwidth without limits and loopback are skipped by ADD, CHECK and DEL alike."""
    write(conf_dir, "loopback", "bridge", "portmap", "bandwidth")
    subject = manager(conf_dir)
    result = subject.add(POD)
    subject.check(POD, result)
    subject.delete(POD, result)
    assert plugins.verbs == ["ADD bridge", "CHECK bridge", "DEL bridge"]


def test_delete_runs_backwards_with_the_final_result(plugins: Plugins, conf_dir: Path) -> None:
    """DEL goes from the last plugin to the first, each with ADD's result, and without a namespace that is gone."""
    write(conf_dir, "bridge", "portmap")
    result = manager(conf_dir).add(PORTS)
    plugins.calls.clear()
    (conf_dir / "10-net.conflist").unlink()
    manager(conf_dir).delete(PORTS, AddResult.from_json(result.to_json()))
    assert plugins.verbs == ["DEL portmap", "DEL bridge"]
    assert all(conf["prevResult"]["ips"] == RESULT["ips"] for _, _, conf, _ in plugins.calls)
    assert {variables["CNI_NETNS"] for *_, variables in plugins.calls} == {""}


def test_before_0_4_0_delete_gets_no_result(plugins: Plugins, conf_dir: Path) -> None:
    """Old plugins do not know prevResult at DEL, nor CHECK at all."""
    write(conf_dir, "bridge", cniVersion="0.3.1")
    subject = manager(conf_dir)
    result = subject.add(POD)
    subject.check(POD, result)
    subject.delete(POD, result)
    assert plugins.verbs == ["ADD bridge", "DEL bridge"]
    assert "prevResult" not in plugins.calls[1][2]


def test_delete_without_result_or_configuration_does_nothing(plugins: Plugins, conf_dir: Path) -> None:
    """With neither, nothing can have been added; with a configuration, its networks are asked."""
    manager(conf_dir).delete(POD, None)
    assert plugins.calls == []
    write(conf_dir, "bridge")
    manager(conf_dir).delete(POD, None)
    assert plugins.verbs == ["DEL bridge"]


@pytest.mark.parametrize("complaint", ["Link not found", "open /x: no such file or directory"])
def test_delete_of_what_is_gone_succeeds(plugins: Plugins, conf_dir: Path, complaint: str) -> None:
    """Plugins that complain of an absence at DEL have nothing left to do."""
    write(conf_dir, "bridge")
    plugins.answer = lambda *_: (1, json.dumps({"code": 999, "msg": complaint}))
    manager(conf_dir).delete(POD, None)


def test_a_failed_add_is_explained_and_its_plan_undone(plugins: Plugins, conf_dir: Path) -> None:
    """The error has command, interface, network, plugin, code, message and details; the plan is enough to undo it."""
    write(conf_dir, "bridge", "tuning")
    failure = {"code": 11, "msg": "try again", "details": "datastore is down"}
    plugins.answer = lambda verb, kind, conf: (int((verb, kind) == ("ADD", "tuning")), json.dumps(failure | RESULT))
    subject = manager(conf_dir)
    plan = subject.plan(POD)
    with pytest.raises(Unavailable) as caught:
        subject.add(POD, plan)
    subject.delete(POD, plan)
    assert str(caught.value).startswith('CNI ADD eth0: network "net", plugin "tuning" (2 of 2): failed after 0.0 s: ')
    assert str(caught.value).endswith("try again (code 11): datastore is down")
    assert isinstance(caught.value, plugin.PluginFailed)
    assert caught.value.cni_code == plugin.TRY_AGAIN_LATER
    assert plugins.verbs == ["ADD bridge", "ADD tuning", "DEL tuning", "DEL bridge"]


@pytest.mark.parametrize(
    ("status", "output", "error", "reason"),
    [
        (1, "panic: oh", Unavailable, "exit status 1: complaint"),
        (1, '{"code": 7, "msg": "bad"}', FailedPrecondition, "bad (code 7)"),
        (1, '{"code": "x", "msg": "bad"}', Unavailable, "exit status 1"),
        (1, "[]", Unavailable, "exit status 1"),
        (0, "", Unavailable, "not JSON"),
        (0, "hello", Unavailable, "not JSON"),
        (0, "[]", Unavailable, "no JSON object"),
        (0, "{}", FailedPrecondition, "no address"),
        (0, "[" * 100_000, Unavailable, "not JSON"),
        (0, '{"ips": 5}', FailedPrecondition, "another form"),
        (0, '{"ips": [5]}', FailedPrecondition, "another form"),
        (0, '{"ips": [{}]}', FailedPrecondition, "another form"),
        (0, '{"ips": [{"address": "nowhere"}]}', FailedPrecondition, "another form"),
        (0, '{"ips": [{"address": "10.0.0.2/24", "interface": "x"}], "interfaces": [{}]}', FailedPrecondition, "form"),
        (0, '{"ips": [{"address": "10.0.0.2/24", "interface": 0}], "interfaces": 7}', FailedPrecondition, "form"),
    ],
)
def test_odd_answers_are_clear_errors(
    plugins: Plugins, conf_dir: Path, status: int, output: str, error: type[Exception], reason: str
) -> None:
    """Whatever a plugin says instead of a result, the error names what was wrong with it."""
    write(conf_dir, "bridge")
    plugins.answer = lambda verb, kind, conf: (status, output) if verb == "ADD" else (0, "")
    with pytest.raises(error) as caught:
        manager(conf_dir).add(POD)
    assert reason in str(caught.value)
    assert 'network "net"' in str(caught.value)


def test_a_chain_has_one_time_limit(plugins: Plugins, conf_dir: Path) -> None:
    """When the first plugin used up the chain's time, the second is not started and named."""
    write(conf_dir, "bridge", "tuning")
    subject = Manager(Cni(bin_dirs=(str(plugins.directory),), conf_dir=str(conf_dir)), timeout=0.05)

    def slow(verb: str, kind: str, conf: dict[str, Any]) -> tuple[int, str]:
        threading.Event().wait(0.06)
        return 0, json.dumps(RESULT)

    plugins.answer = slow
    with pytest.raises(DeadlineExceeded, match=r'"tuning" \(2 of 2\): not started'):
        subject.add(POD)


def test_the_state_follows_the_directory(plugins: Plugins, conf_dir: Path) -> None:
    """The message says what to look at while there is no network; files that come and go are noticed at once."""
    subject = manager(conf_dir)
    assert f"{conf_dir} does not exist" in subject.status().message
    conf_dir.mkdir()
    assert "no file" in subject.status().message
    (conf_dir / "10-net.conflist").write_text("{")
    state = subject.status()
    assert (state.ready, state.reason) == (False, "NetworkPluginNotReady")
    assert "10-net.conflist: line 1" in state.message
    assert "files seen: 10-net.conflist" in state.message
    with pytest.raises(Unavailable, match="line 1"):
        subject.add(POD)
    write(conf_dir, "bridge", "elsewhere")
    assert 'network "net": no executable plugin "elsewhere" in' in subject.status().message
    plugins.install("elsewhere")
    assert subject.status().ready
    (conf_dir / "10-net.conflist").unlink()
    conf_dir.rmdir()
    assert not subject.status().ready
    write(conf_dir, "bridge")
    assert subject.status().ready


def test_status_asks_plugins_that_know_it(plugins: Plugins, conf_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1.1.0 on the plugins' own STATUS counts, asked once a period; before, they are not asked."""
    write(conf_dir, "bridge")
    assert manager(conf_dir).status().ready
    assert plugins.calls == []
    write(conf_dir, "bridge", cniVersion="1.1.0")
    subject = manager(conf_dir)
    plugins.answer = lambda *_: (1, '{"code": 50, "msg": "no route to the datastore"}')
    for _ in range(2):
        assert "no route to the datastore (code 50)" in subject.status().message
    assert plugins.verbs == ["STATUS bridge"]
    monkeypatch.setattr(manager_module, "STATUS_PERIOD", 0.0)
    plugins.answer = lambda *_: (0, "")
    assert subject.status().ready


def test_gc_hands_over_what_is_valid(plugins: Plugins, conf_dir: Path) -> None:
    """GC gives each plugin of a 1.1.0 network the attachments to keep, unless the network forbids it."""
    write(conf_dir, "bridge", cniVersion="1.1.0")
    manager(conf_dir).gc([("id", "eth0")])
    assert plugins.verbs == ["GC bridge"]
    assert plugins.calls[0][2]["cni.dev/valid-attachments"] == [{"containerID": "id", "ifname": "eth0"}]
    write(conf_dir, "bridge", cniVersion="1.1.0", disableGC=True)
    manager(conf_dir).gc([])
    assert len(plugins.calls) == 1


def test_one_failing_network_fails_the_pod(plugins: Plugins, conf_dir: Path) -> None:
    """With several networks the failure of one is raised, and the plan detaches from all."""
    write(conf_dir, "bridge")
    write(conf_dir, "tuning", file="20-second.conflist", name="second")
    plugins.answer = lambda verb, kind, conf: (int(kind == "tuning" and verb == "ADD"), json.dumps(RESULT))
    subject = manager(conf_dir, max_conf_num=0, setup_serially=True)
    plan = subject.plan(POD)
    with pytest.raises(Unavailable, match='CNI ADD eth1: network "second"'):
        subject.add(POD, plan)
    subject.delete(POD, plan)
    assert plugins.verbs == ["ADD bridge", "ADD tuning", "DEL bridge", "DEL tuning"]


def test_delete_tries_every_network(plugins: Plugins, conf_dir: Path) -> None:
    """One network's failing DEL does not keep the others attached; it is raised in the end."""
    write(conf_dir, "tuning")
    write(conf_dir, "bridge", file="20-second.conflist", name="second")
    plugins.answer = lambda verb, kind, conf: (int(kind == "tuning"), "{}")
    with pytest.raises(Unavailable, match='CNI DEL eth0: network "net"'):
        manager(conf_dir, max_conf_num=0, setup_serially=True).delete(POD, None)
    assert plugins.verbs == ["DEL tuning", "DEL bridge"]


def test_adds_pass_a_gate_and_deletes_do_not(plugins: Plugins, conf_dir: Path) -> None:
    """While the gate is closed an ADD waits, and a DEL goes through."""
    write(conf_dir, "bridge")
    gate = threading.BoundedSemaphore(1)
    subject = Manager(Cni(bin_dirs=(str(plugins.directory),), conf_dir=str(conf_dir)), 5, gate=gate)
    with gate:
        waiting = threading.Thread(target=subject.add, args=(POD,))
        waiting.start()
        subject.delete(POD, None)
        assert plugins.verbs == ["DEL bridge"]
    waiting.join(60)
    assert plugins.verbs == ["DEL bridge", "ADD bridge"]


def test_handlers_with_a_directory_of_their_own_get_a_manager() -> None:
    """cni_conf_dir of a runtime handler gives it its own networks; the others share the node's."""
    handlers = {
        "runc": RuntimeHandler("runc"),
        "kata": RuntimeHandler("kata", cni_conf_dir="/etc/kata-cni", cni_max_conf_num=2),
    }
    found = managers(Config(runtime=Runtime(runtimes=handlers)))
    assert found["runc"] is found[""]
    assert found["kata"] is not found[""]
