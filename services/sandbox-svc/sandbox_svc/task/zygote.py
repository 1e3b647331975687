"""Orders to the shim zygote: fork a shim for a pod, or a keeper beside a foreign shim."""

import logging
import socket
import time
from pathlib import Path
from typing import Any

from bulkhead import metrics, paths, seqpacket
from bulkhead.errors import BulkheadError, Unavailable, from_code
from sandbox_svc.process import boot_id
from sandbox_svc.store.records import Process, ShimBinding

logger = logging.getLogger(__name__)

#: The containerd namespace that pods live in, as cri-tools and kubelets expect it.
NAMESPACE = "k8s.io"
#: Seconds until a forked shim's sockets must listen.
FORK_TIMEOUT = 15.0
#: Seconds that a new pod waits for a zygote that is being started again: the supervisor takes 5 in a crash loop.
RESTART_PATIENCE = 10.0


class Zygote:
    """The zygote's socket; a connection an order, so that a restarted zygote is found without ado."""

    def __init__(self, state: Path, stream_gid: int) -> None:
        self._state = state
        self._socket = str(paths.zygote_socket(state))
        self._stream_gid = stream_gid

    def binding(self, sandbox_id: str) -> ShimBinding:
        """Return how the shim of a pod will be reached, before it is forked."""
        directory = paths.shim_directory(self._state, sandbox_id)
        return ShimBinding(
            address=str(paths.task_socket(self._state, sandbox_id)), directory=str(directory), namespace=NAMESPACE
        )

    def fork(self, sandbox_id: str, kind: str = "shim", **more: Any) -> Process:
        """Have a shim (or keeper) forked and return its process once its sockets listen."""
        order = {
            "id": sandbox_id,
            "namespace": NAMESPACE,
            "directory": str(paths.shim_directory(self._state, sandbox_id)),
            "bundles": str(paths.bundle(self._state, "x").parent),
            "stream_gid": self._stream_gid,
            "kind": kind,
            **more,
        }
        with metrics.stage("shim_fork"):
            forked = self._ask({"fork": order}, "forked", RESTART_PATIENCE)
        return Process(int(forked["pid"]), int(forked["start_time"]), boot_id())

    def working_crun(self) -> str:
        """Return the path of a crun that the zygote has seen to work in its mount namespace, "" if there is none.

        crun before 1.9 refuses hybrid cgroup hosts, except where the zygote has hidden the v2 tree from itself.
        """
        try:
            # Started beside us, the zygote may need longer than we do; who gives up would make every pod with runc.
            found = self._ask({"probe": {"binary": "crun"}}, "probed", RESTART_PATIENCE)
        except BulkheadError as error:
            logger.info("crun is not used: %s", error)
            return ""
        return str(found.get("path", "")) if found.get("works") else ""

    def _connect(self, patience: float) -> socket.socket:
        """Connect, trying for `patience` seconds: nothing was sent yet, so nothing is ordered twice."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return seqpacket.connect(self._socket, FORK_TIMEOUT)
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)

    def _ask(self, message: dict[str, Any], key: str, patience: float = 0.0) -> dict[str, Any]:
        sock = self._connect(patience)
        try:
            seqpacket.send(sock, message)
            answer, fds = seqpacket.receive(sock)
        except OSError as error:
            raise Unavailable(f"the shim zygote ({self._socket}) does not answer: {error}") from error
        finally:
            sock.close()
        assert not fds
        if answer is None:
            raise Unavailable(f"the shim zygote ({self._socket}) closed the connection")
        if failure := answer.get("error"):
            raise from_code(int(failure.get("code", 13)), f"shim zygote: {failure.get('message', 'no reason given')}")
        result: dict[str, Any] = answer[key]
        return result
