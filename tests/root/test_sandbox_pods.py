"""sandbox-svc over its socket, with real runtimes, shims and CNI plugins: what pods and containers do."""

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.fake_images import BUSYBOX, PAUSE
from support.leaks import Host
from support.nri import eventually
from support.pods import Pods
from support.sandbox import Sandbox

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["runc", "crun"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One service for the module and runtime."""
    with Sandbox(default=request.param) as running:
        yield running
        running.remove_all()
        assert running.remains() == []


@pytest.fixture
def pods(sandbox: Sandbox) -> Iterator[Pods]:
    """A maker of pods, which are gone after the test whatever became of it."""
    yield sandbox.pods()
    sandbox.remove_all()


def code(caught: "pytest.ExceptionInfo[grpc.RpcError]") -> grpc.StatusCode:
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code()


def details(caught: "pytest.ExceptionInfo[grpc.RpcError]") -> str:
    assert isinstance(caught.value, grpc.Call)
    return caught.value.details() or ""


def output(pods: Pods, container: str, script: str) -> str:
    answer = pods.exec(container, "sh", "-c", script)
    assert answer.exit_code == 0, answer
    return answer.stdout.decode()


def test_a_pod_comes_and_goes_without_a_trace(sandbox: Sandbox, pods: Pods) -> None:
    """Network, files, cgroups, mounts and processes of a pod are gone when it is removed."""
    mark = str(sandbox.directory)
    pods.remove(pods.run(pods.config("warm")))  # the bridge and its rules come with the first pod and stay
    sandbox.remove_all()
    before = Host.look(mark)
    config = pods.config("trace")
    pod = pods.run(config)
    status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True), timeout=30)
    assert status.status.state == cri.SANDBOX_READY
    assert status.status.network.ip.startswith("10.91.")
    assert len(status.status.network.additional_ips) == 1
    assert '"pid"' in status.info["info"]
    container = pods.start(pod, config, "app", "sleep 1000")
    during = before.left_by(Host.look(mark))
    for kind in ("mounts", "links", "cgroups"):
        assert during[kind], kind
    pods.remove(pod)
    sandbox.remove_all()
    assert sandbox.remains() == []

    def left() -> list[str]:
        found = before.left_by(Host.look(mark))
        # Other stacks of the machine may come and go meanwhile: what is ours carries an id or the scratch directory.
        ours = [item for items in found.values() for item in items if any(m in item for m in (mark, pod, container))]
        return [*ours, *found.get("links", []), *found.get("rules", [])]

    # The shim has taken its files away and is on its way out.
    eventually(lambda: left() == [], 20)


def test_what_a_container_sees(sandbox: Sandbox, pods: Pods, tmp_path: Path) -> None:
    """Hostname, DNS, shm, user, environment, mounts and logs are as asked for."""
    config = pods.config(
        "inside",
        hostname="inside-0",
        dns_config=cri.DNSConfig(servers=["192.0.2.1"], searches=["example.test"], options=["ndots:2"]),
        linux=cri.LinuxPodSandboxConfig(sysctls={"net.ipv4.ip_unprivileged_port_start": "400"}),
    )
    pod = pods.run(config)
    context = cri.LinuxContainerSecurityContext(run_as_username="www")
    container = pods.start(
        pod,
        config,
        "app",
        "echo out; echo err >&2; sleep 1000",
        envs=[cri.KeyValue(key="GREETING", value="grüß dich".encode())],
        mounts=[cri.Mount(container_path="/given", host_path=str(tmp_path / "made"), readonly=True)],
        linux=cri.LinuxContainerConfig(security_context=context),
    )
    assert output(pods, container, "hostname") == "inside-0\n"
    assert output(pods, container, "cat /etc/resolv.conf") == (
        "search example.test\nnameserver 192.0.2.1\noptions ndots:2\n"
    )
    assert output(pods, container, "id -u; id -g; id -G") == "33\n33\n33 5000\n"
    assert output(pods, container, "df -k /dev/shm | tail -1 | awk '{print $2}'") == "65536\n"
    assert output(pods, container, "echo $GREETING") == "grüß dich\n"
    assert output(pods, container, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "400\n"
    assert (tmp_path / "made").is_dir()
    status = pods.status(container)
    assert (status.user.linux.uid, list(status.user.linux.supplemental_groups)) == (33, [33, 5000])
    assert status.image_id.startswith("sha256:")
    assert status.image_ref.startswith("example.test/busybox@sha256:")
    log = sandbox.directory / "logs" / "app.log"
    eventually(lambda: log.read_text().count("\n") == 2)
    lines = log.read_text().splitlines()
    assert sorted(line.split(" ", 1)[1] for line in lines) == ["stderr F err", "stdout F out"]
    pods.remove(pod)


def test_pods_on_the_nodes_namespaces(sandbox: Sandbox, pods: Pods) -> None:
    """Host network needs no CNI and has no address of its own; host PID and IPC are joined."""
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE)
    linux = cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))
    config = pods.config("node", linux=linux)
    pod = pods.run(config)
    status = pods.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=30).status
    assert status.network.ip == ""
    context = cri.LinuxContainerSecurityContext(namespace_options=options)
    container = pods.start(pod, config, "app", "sleep 1000", linux=cri.LinuxContainerConfig(security_context=context))
    for kind in ("net", "pid", "ipc"):
        ours = subprocess.run(["readlink", f"/proc/self/ns/{kind}"], capture_output=True, text=True, check=True)
        assert output(pods, container, f"readlink /proc/self/ns/{kind}") == ours.stdout
    pods.stop(container)
    assert pods.status(container).exit_code == 137
    pods.remove(pod)


def test_a_shared_pid_namespace_and_a_target(sandbox: Sandbox, pods: Pods) -> None:
    """POD mode shares the pause container's processes; TARGET joins another container's."""
    config = pods.config("pids")
    pod = pods.run(config)

    def linux(**fields: object) -> cri.LinuxContainerConfig:
        options = cri.NamespaceOption(**fields)  # type: ignore[arg-type] # the test's own fields
        return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))

    alone = pods.start(pod, config, "alone", "sleep 1001", linux=linux(pid=cri.CONTAINER))
    target = pods.start(pod, config, "debug", "sleep 1002", linux=linux(pid=cri.TARGET, target_id=alone))
    assert "sleep 1001" in output(pods, target, "ps")
    with pytest.raises(grpc.RpcError) as caught:
        pods.create(pod, config, "lost", "true", linux=linux(pid=cri.TARGET, target_id="f" * 64))
    assert code(caught) is grpc.StatusCode.INVALID_ARGUMENT
    pods.remove(pod)


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [("true", 0, "Completed"), ("exit 7", 7, "Error"), ("kill -9 $$", 137, "Error")],
)
def test_exits_have_code_and_reason(sandbox: Sandbox, pods: Pods, script: str, status: int, reason: str) -> None:
    """What the process did is what the status says, and the log is complete."""
    config = pods.config("exits")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", f"echo last words; {script}")
    ended = pods.wait_exited(container)
    assert (ended.exit_code, ended.reason) == (status, reason)
    assert ended.finished_at >= ended.started_at >= ended.created_at > 0
    assert (sandbox.directory / "logs" / "app.log").read_text().endswith("stdout F last words\n")
    with pytest.raises(grpc.RpcError) as caught:
        pods.exec(container, "true")
    assert code(caught) is grpc.StatusCode.FAILED_PRECONDITION
    pods.remove(pod)
    (sandbox.directory / "logs" / "app.log").unlink()


def test_running_out_of_memory_is_named(sandbox: Sandbox, pods: Pods) -> None:
    """A container killed by the kernel for its memory limit has the reason OOMKilled."""
    config = pods.config("oom")
    pod = pods.run(config)
    limits = cri.LinuxContainerResources(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
    container = pods.start(pod, config, "app", "exec tail /dev/zero", linux=cri.LinuxContainerConfig(resources=limits))
    ended = pods.wait_exited(container)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    pods.remove(pod)


def test_a_container_that_cannot_start_says_why(sandbox: Sandbox, pods: Pods) -> None:
    """StartContainer fails with the runtime's words, and the status keeps them."""
    config = pods.config("broken")
    pod = pods.run(config)
    broken = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="app"), image=cri.ImageSpec(image=BUSYBOX), command=["/does/not/exist"]
    )
    request = cri.CreateContainerRequest(pod_sandbox_id=pod, config=broken, sandbox_config=config)
    container = pods.runtime.CreateContainer(request, timeout=60).container_id
    with pytest.raises(grpc.RpcError) as caught:
        pods.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    assert "/does/not/exist" in details(caught)
    status = pods.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    assert "/does/not/exist" in status.message
    pods.remove(pod)


def test_a_second_stop_shortens_the_first(sandbox: Sandbox, pods: Pods) -> None:
    """A container that ignores its stop signal is killed by the shortest grace; stopping again is fine."""
    config = pods.config("stubborn")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "trap '' TERM; echo ready; while true; do sleep 0.1; done")
    eventually(lambda: "ready" in (sandbox.directory / "logs" / "app.log").read_text())
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        patient = pool.submit(pods.stop, container, 60)
        time.sleep(0.3)
        pool.submit(pods.stop, container, 1).result(60)
        patient.result(60)
    assert 1.0 < time.monotonic() - began < 40
    assert pods.status(container).exit_code == 137
    pods.stop(container, 5)
    pods.stop("f" * 64)
    pods.remove(pod)
    (sandbox.directory / "logs" / "app.log").unlink()


def test_the_stop_signal_is_heeded(sandbox: Sandbox, pods: Pods) -> None:
    """The configured signal is sent, and a container that obeys ends at once with its own code."""
    config = pods.config("obedient")
    pod = pods.run(config)
    container = pods.start(
        pod,
        config,
        "app",
        "trap 'exit 9' USR1; echo ready; while true; do sleep 0.05; done",
        stop_signal=cri.SIGNAL_SIGUSR1,
    )
    # A signal that comes before the trap is set is one that the first process of a namespace does not get.
    eventually(lambda: "ready" in (sandbox.directory / "logs" / "app.log").read_text())
    began = time.monotonic()
    pods.stop(container, 60)
    assert time.monotonic() - began < 40
    assert pods.status(container).exit_code == 9
    pods.remove(pod)
    (sandbox.directory / "logs" / "app.log").unlink()


def test_exec_sync_limits(sandbox: Sandbox, pods: Pods) -> None:
    """Codes and both streams come back; a command over its time is DEADLINE_EXCEEDED; long output fits a message."""
    config = pods.config("exec")
    pod = pods.run(config)
    container = pods.start(pod, config, "app", "sleep 1000")
    answer = pods.exec(container, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 4)
    with pytest.raises(grpc.RpcError) as caught:
        pods.exec(container, "sleep", "777", timeout=1)
    assert code(caught) is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: "sleep 777" not in output(pods, container, "ps"))
    answer = pods.exec(container, "sh", "-c", "head -c 300000 /dev/zero; head -c 70000 /dev/zero >&2")
    assert (len(answer.stdout), len(answer.stderr)) == (300_000, 70_000)
    answer = pods.exec(container, "sh", "-c", "head -c 30000000 /dev/zero")
    assert 15 << 20 < len(answer.stdout) < 16 << 20
    began = time.monotonic()
    assert pods.exec(container, "sh", "-c", "sleep 1000 & echo done").stdout == b"done\n"
    assert time.monotonic() - began < 28
    for command in ([], [""]):
        with pytest.raises(grpc.RpcError) as caught:
            pods.exec(container, *command)
        assert code(caught) is grpc.StatusCode.INVALID_ARGUMENT
    pods.remove(pod)


def test_a_log_is_reopened_after_its_rotation(sandbox: Sandbox, pods: Pods) -> None:
    """Lines after the rotation go to a new file; an exited container's log is not made anew."""
    config = pods.config("rotate")
    pod = pods.run(config)
    container = pods.start(pod, config, "rot", "while true; do echo tick; sleep 0.05; done")
    log = sandbox.directory / "logs" / "rot.log"
    eventually(lambda: "tick" in log.read_text())
    log.rename(log.with_suffix(".1"))
    pods.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), timeout=30)
    eventually(lambda: log.exists() and "stdout F tick" in log.read_text())
    pods.stop(container)
    log.unlink()
    with pytest.raises(grpc.RpcError) as caught:
        pods.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), timeout=30)
    assert code(caught) is grpc.StatusCode.FAILED_PRECONDITION
    assert not log.exists()
    pods.remove(pod)


def test_a_retry_joins_the_running_creation(sandbox: Sandbox, pods: Pods) -> None:
    """Two calls with one metadata make one pod, also when the first caller has given up."""
    config = pods.config("joined")
    release = threading.Event()
    sandbox.images.before_prepare = lambda key: release.wait(60)
    try:
        request = cri.RunPodSandboxRequest(config=config)
        with pytest.raises(grpc.RpcError) as caught:
            pods.runtime.RunPodSandbox(request, timeout=0.5)
        assert code(caught) is grpc.StatusCode.DEADLINE_EXCEEDED
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(pods.run, config) for _ in range(3)]
            time.sleep(0.3)
            release.set()
            assert len({call.result(60) for call in calls}) == 1
    finally:
        release.set()
        sandbox.images.before_prepare = None
    pod = pods.run(config)
    assert [p.id for p in pods.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items] == [pod]
    pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
    with pytest.raises(grpc.RpcError) as caught:
        pods.run(config)
    assert code(caught) is grpc.StatusCode.ALREADY_EXISTS
    pods.remove(pod)


def test_a_container_is_created_once_for_one_metadata(sandbox: Sandbox, pods: Pods) -> None:
    """The same request again gets the same container; another with its name does not."""
    config = pods.config("once")
    pod = pods.run(config)
    first = pods.create(pod, config, "app", "true")
    assert pods.create(pod, config, "app", "true") == first
    with pytest.raises(grpc.RpcError) as caught:
        pods.create(pod, config, "app", "false")
    assert code(caught) is grpc.StatusCode.ALREADY_EXISTS
    pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=first), timeout=30)
    pods.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=first), timeout=30)
    assert pods.create(pod, config, "app", "false") != first
    pods.remove(pod)


def test_a_failed_creation_leaves_nothing(sandbox: Sandbox, pods: Pods) -> None:
    """A pod whose snapshot fails is taken back whole, and its name can be used at once."""
    config = pods.config("failing")
    before = sandbox.remains()

    def refuse(key: str) -> None:
        raise RuntimeError("disk on fire")

    sandbox.images.before_prepare = refuse
    try:
        with pytest.raises(grpc.RpcError) as caught:
            pods.run(config)
        assert "snapshot" in details(caught)
        assert "disk on fire" in details(caught)
    finally:
        sandbox.images.before_prepare = None
    assert sandbox.remains() == before
    pods.remove(pods.run(config))


def test_the_pause_image_is_pulled_when_it_is_missing(sandbox: Sandbox, pods: Pods) -> None:
    """A node whose pause image was removed runs pods all the same."""
    sandbox.images.absent.add(PAUSE)
    pod = pods.run(pods.config("pulled"))
    assert ("PullImage", PAUSE) in sandbox.images.calls
    pods.remove(pod)


def test_a_pod_stops_without_configuration_and_namespace(sandbox: Sandbox, pods: Pods) -> None:
    """CNI DEL works from what ADD left, when the configuration is gone and the namespace, too; twice is fine."""
    conf = sandbox.directory / "cni" / "10-test.conflist"
    text = conf.read_text()
    pod = pods.run(pods.config("orphan"))
    leases = Path("/run/bh91/bh91") if Path("/run/bh91/bh91").exists() else Path("/var/lib/cni/networks/bh91")
    conf.unlink()
    try:
        for pin in (sandbox.state / "netns").glob("cni-*"):
            subprocess.run(["umount", "-l", pin], check=True)
        assert not sandbox_ready(pods)
        for _ in range(2):
            pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=60)
        assert list(leases.glob("10.*")) == []
    finally:
        conf.write_text(text)
    pods.remove(pod)


def sandbox_ready(pods: Pods) -> bool:
    conditions = pods.runtime.Status(cri.StatusRequest(), timeout=30).status.conditions
    return all(condition.status for condition in conditions)


def test_lists_are_filtered(sandbox: Sandbox, pods: Pods) -> None:
    """By label, state, pod and the beginning of an id."""
    one, two = pods.config("one", labels={"n": "1"}), pods.config("two", labels={"n": "2"})
    first, second = pods.run(one), pods.run(two)
    container = pods.start(first, one, "app", "sleep 1000", labels={"c": "1"})

    def listed(**fields: object) -> list[str]:
        request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**fields))  # type: ignore[arg-type] # test
        return [item.id for item in pods.runtime.ListPodSandbox(request, timeout=30).items]

    assert listed() == [first, second]
    assert listed(label_selector={"n": "2"}) == [second]
    assert listed(id=first[:10]) == [first]
    pods.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=second), timeout=60)
    assert listed(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY)) == [first]
    chosen = cri.ContainerFilter(pod_sandbox_id=first, label_selector={"c": "1"})
    found = pods.runtime.ListContainers(cri.ListContainersRequest(filter=chosen), timeout=30).containers
    assert [item.id for item in found] == [container]
    assert found[0].image_ref.startswith("sha256:")
    assert found[0].image.image == BUSYBOX
    pods.remove(first)
    pods.remove(second)


def test_status_says_why_the_network_is_not_ready(sandbox: Sandbox, pods: Pods) -> None:
    """The condition carries a reason and a message; the handlers have the entry with the empty name."""
    status = pods.runtime.Status(cri.StatusRequest(verbose=True), timeout=30)
    assert {handler.name for handler in status.runtime_handlers} == {"", "runc", "crun"}
    assert "config" in status.info
    conf = sandbox.directory / "cni" / "10-test.conflist"
    text = conf.read_text()
    conf.write_text("{")
    try:
        status = pods.runtime.Status(cri.StatusRequest(), timeout=30)
        (network,) = [c for c in status.status.conditions if c.type == "NetworkReady"]
        assert not network.status
        assert "10-test.conflist" in network.message
    finally:
        conf.write_text(text)
    assert sandbox_ready(pods)


def test_rpcs_that_are_not_built_say_so(sandbox: Sandbox) -> None:
    """UNIMPLEMENTED with the RPC's name."""
    stub = sandbox.stub()
    with pytest.raises(grpc.RpcError) as caught:
        stub.CheckpointPod(cri.CheckpointPodRequest(), timeout=30)
    assert code(caught) is grpc.StatusCode.UNIMPLEMENTED
    assert details(caught) == "CheckpointPod is not implemented"


def test_limits_change_in_place(sandbox: Sandbox, pods: Pods) -> None:
    """A running container's memory limit is raised, one not started yet starts with its new one."""
    config = pods.config("resize")
    pod = pods.run(config)
    limits = cri.LinuxContainerConfig(
        resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
    )
    running = pods.start(pod, config, "running", "sleep 1000", linux=limits)
    waiting = pods.create(pod, config, "waiting", "sleep 1000", linux=limits)
    for container in (running, waiting):
        pods.runtime.UpdateContainerResources(
            cri.UpdateContainerResourcesRequest(
                container_id=container, linux=cri.LinuxContainerResources(memory_limit_in_bytes=128 << 20)
            ),
            timeout=60,
        )
        assert pods.status(container).resources.linux.memory_limit_in_bytes == 128 << 20
        assert pods.status(container).resources.linux.cpu_shares == 512
    pods.runtime.StartContainer(cri.StartContainerRequest(container_id=waiting), timeout=60)
    for container in (running, waiting):
        stats = pods.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container), timeout=30).stats
        used = stats.memory.working_set_bytes.value
        assert 127 << 20 < used + stats.memory.available_bytes.value <= 128 << 20
    pods.stop(running)
    with pytest.raises(grpc.RpcError) as caught:
        pods.runtime.UpdateContainerResources(cri.UpdateContainerResourcesRequest(container_id=running), timeout=30)
    assert code(caught) is grpc.StatusCode.FAILED_PRECONDITION


def test_streamed_lists_equal_the_plain_ones(sandbox: Sandbox, pods: Pods) -> None:
    """Stream… answers carry the same items as List…."""
    config = pods.config("streamed")
    pod = pods.run(config)
    pods.start(pod, config, "app", "sleep 1000")
    runtime = pods.runtime
    streamed = [
        p for m in runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest(), timeout=30) for p in m.pod_sandboxes
    ]
    assert streamed == list(runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items)
    containers = [c for m in runtime.StreamContainers(cri.StreamContainersRequest(), timeout=30) for c in m.containers]
    assert containers == list(runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers)
    usage = [
        s
        for m in runtime.StreamContainerStats(cri.StreamContainerStatsRequest(), timeout=30)
        for s in m.container_stats
    ]
    assert [s.attributes.id for s in usage] == [c.id for c in containers]
    of_pods = runtime.StreamPodSandboxStats(cri.StreamPodSandboxStatsRequest(), timeout=30)
    assert [s.attributes.id for m in of_pods for s in m.pod_sandbox_stats] == [pod]
