"""The sandbox service: `sandbox-svc --config FILE`, as root."""

import argparse
import contextlib
import functools
import logging
import os
import pwd
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import Gauge

from bulkhead import log, metrics, paths, rpc
from bulkhead.config import load
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.service import StopNotice
from sandbox_svc import cni, facts, recovery, service, trees
from sandbox_svc.background import Background
from sandbox_svc.happenings import Happenings
from sandbox_svc.images import Images
from sandbox_svc.node import Node
from sandbox_svc.oci.host import LinuxHost
from sandbox_svc.runtimes import Runtimes
from sandbox_svc.stats import Collector
from sandbox_svc.store.database import Database
from sandbox_svc.store.entities import Container, Pod
from sandbox_svc.store.model import Model
from sandbox_svc.streams import Streams
from sandbox_svc.task.events import EventSink
from sandbox_svc.task.zygote import Zygote

NAME = "sandbox-svc"
logger = logging.getLogger(__name__)

#: Seconds that calls have to their end, and those that calls and then removals which were answered have together; with
#: the one that NRI plugins have for their shutdown afterwards it is less than the supervisor waits.
CALL_SECONDS, STOP_SECONDS = 2.0, 3.5


def build(config: Config) -> Node:
    """Return a node of its parts, with nothing recovered and nothing served yet."""
    for directory in (config.root, config.state):
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
    for directory in (config.root / "sandboxes", config.root / "containers", config.state / "shm"):
        # Set-id programs of images' volumes and pods' shared memory are in there: no other user's to reach.
        directory.mkdir(exist_ok=True, mode=0o700)
        directory.chmod(0o700)
    happenings = Happenings()
    model = Model(happenings.observe)
    zygote = Zygote(config.state, _stream_gid(config))
    return Node(
        config=config,
        database=Database(config.root / "sandboxes.db"),
        model=model,
        images=Images(config.state, model.keys, config.root / "snapshots", config.exports_of),
        networks=cni.managers(config),
        runtimes=Runtimes(config.runtime, config.state, zygote.working_crun()),
        facts=facts.collect(LinuxHost(), config.runtime.restrict_oom_score_adj),
        zygote=zygote,
        streams=Streams(config.state),
        background=Background(),
        collector=Collector(
            period=config.runtime.stats_collect_period, layer_period=config.images.stats_collect_period
        ),
        happenings=happenings,
        settle=recovery.soon,
    )


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; pods go on without us."""
    stop = StopNotice()
    socket = paths.service_socket(config.state, NAME)
    rpc.refuse_live(str(socket))
    node = build(config)
    recovery.load(node)
    node.images.watch()
    # Before any pod is made: what is made without a plugin that has to be asked stays as it is.
    node.nri.hooks.start()
    socket.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    server = rpc.server(service.register(node), str(socket), 0o660)
    _give_to_group(socket)
    EventSink(node.events_socket)
    port = config.bulkhead.metrics_ports.get(NAME, -1)
    metrics.serve(NAME, lambda: _unready(node), port=port, notes=node.nri.hooks.notes)
    _count(node)
    settling = recovery.start(node)
    logger.info("serving %d pods on %s", len(settling), socket)
    logger.info("stopping on %s", stop.wait())
    end = time.monotonic() + STOP_SECONDS
    node.happenings.stop()
    server.stop(grace=CALL_SECONDS).wait(STOP_SECONDS)
    # A pod whose removal has been answered shall not look like one that goes on: with its shim the zygote would stay.
    node.background.tidied(max(0.0, end - time.monotonic()))
    node.nri.hooks.stop()
    node.background.stop()
    if not node.model.everything():
        _leave_nothing(config.state)
    node.database.close()
    # Calls still waiting in threads (a StopContainer's grace) must not hold the exit up: their callers are gone.
    logging.shutdown()
    os._exit(0)


def _leave_nothing(state: Path) -> None:
    """Remove the directories that hold pods' things, now that there are no pods; one that is not empty stays."""
    trees.unmount(state / "netns")
    for name in ("netns", "userns", "shm", "bundles", "s", "runtime", "idmapped", "image-volumes"):
        for directory, _, _ in os.walk(state / name, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def _count(node: Node) -> None:
    """Show how many pods and containers there are, by state."""
    pods = Gauge("bulkhead_pods", "Pods by state.", ["state"])
    for name, value in cri.PodSandboxState.items():
        label = name.removeprefix("SANDBOX_").lower()
        pods.labels(label).set_function(functools.partial(_in_state, node.model.pods, value))
    containers = Gauge("bulkhead_containers", "Containers by state.", ["state"])
    for name, kind in cri.ContainerState.items():
        label = name.removeprefix("CONTAINER_").lower()
        containers.labels(label).set_function(functools.partial(_in_state, node.model.containers, kind))


def _in_state(things: Callable[[], Sequence[Pod | Container]], state: int) -> float:
    return sum(thing.state == state for thing in things())


def _unready(node: Node) -> list[str]:
    reasons = [f"pod {pod.id} is being settled" for pod in node.model.pods() if not pod.settled.is_set()]
    if not node.images.reachable:
        reasons.append("image-svc is not connected")
    return reasons


def _stream_gid(config: Config) -> int:
    """Return the group of stream-svc's user, root's where that user does not exist (a development stack)."""
    try:
        return pwd.getpwnam(config.bulkhead.users["stream-svc"]).pw_gid
    except KeyError:
        return 0


def _give_to_group(socket: Path) -> None:
    """Let the frontend reach the socket: its directory's group is the group of callers, set by the launcher."""
    os.chown(socket, -1, socket.parent.stat().st_gid)


def main() -> None:
    """Read the command line and the configuration, and serve."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument("--config", default="", help="configuration file; built-in defaults without one")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
    except BulkheadError as error:
        sys.exit(f"{NAME}: {error}")
    log.setup("sandbox_svc", config.debug.level, config.debug.format)
    try:
        serve(config)
    except (BulkheadError, OSError) as error:
        logger.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
