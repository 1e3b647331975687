"""Names: who holds which metadata, and the joining of a retry with the creation it repeats.

The kubelet gives RunPodSandbox four minutes and then asks again with the same metadata. The second call must not
hear "name is reserved" (it would for hours), it waits for the first one's result.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from bulkhead.proto.runtime.v1 import api_pb2 as cri


def pod_name(metadata: cri.PodSandboxMetadata) -> str:
    """Return what makes a pod unique: name, namespace, uid and attempt."""
    return "_".join((metadata.name, metadata.namespace, metadata.uid, str(metadata.attempt)))


def container_name(metadata: cri.ContainerMetadata, sandbox_id: str) -> str:
    """Return what makes a container unique: its name, its pod and its attempt."""
    return "_".join((metadata.name, sandbox_id, str(metadata.attempt)))


class Names:
    """Creations by name, running and finished; a failed one gives its name back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Future[str]] = {}

    def begin(self, name: str, create: Callable[[], "Future[str]"]) -> "tuple[Future[str], bool]":
        """Return the creation that holds the name and False, or start one by `create` and return it and True.

        The future's result is the id; a creation that fails frees the name before its waiters hear of it.
        """
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                return held, False
            outcome: Future[str] = Future()
            self._held[name] = outcome
        try:
            running = create()
        except BaseException as error:
            self.free(name)
            outcome.set_exception(error)
            raise
        running.add_done_callback(lambda done: self._settle(name, done, outcome))
        return outcome, True

    def hold(self, name: str, ident: str) -> None:
        """Record that something recovered holds the name."""
        done: Future[str] = Future()
        done.set_result(ident)
        with self._lock:
            self._held[name] = done

    def free(self, name: str) -> None:
        """Give a name back."""
        with self._lock:
            self._held.pop(name, None)

    def _settle(self, name: str, done: "Future[str]", outcome: "Future[str]") -> None:
        error = done.exception()
        if error is None:
            outcome.set_result(done.result())
        else:
            self.free(name)
            outcome.set_exception(error)
