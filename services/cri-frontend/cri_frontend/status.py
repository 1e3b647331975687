"""Version and Status: what the frontend answers by itself, from what it has last seen.

A poller asks the services; Status merges its findings and waits for nobody. Only RuntimeReady and NetworkReady decide
whether the kubelet uses the node, so image-svc, stream-svc and the decryptor have conditions of their own: a node is
not drained because one of them restarts.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
from prometheus_client import Gauge

from bulkhead import __version__, rpc
from bulkhead.errors import BulkheadError
from bulkhead.proto.runtime.v1 import api_pb2, api_pb2_grpc
from cri_frontend.backend import Backend
from cri_frontend.probes import Probe

logger = logging.getLogger(__name__)

UP = Gauge("bulkhead_frontend_backend_up", "1 while the service answered when last asked.", ["service"])

#: Seconds without an answer of sandbox-svc after which RuntimeReady turns false.
SEEN_LIMIT = 30.0
_POLL_EVERY, _POLL_TIMEOUT, _RETRY_AFTER = 2.0, 2.0, 0.1
#: How long a Status call waits for an answer asked for on its account, if sandbox-svc answered when last asked.
_FRESH_WAIT = 0.1


@dataclass
class Findings:
    """What the poller last saw; times are of time.monotonic()."""

    runtime: api_pb2.StatusResponse | None = None
    seen_at: float = float("-inf")
    #: Why sandbox-svc did not answer the last time; empty if it did.
    trouble: str = "sandbox-svc has not answered yet"
    #: By condition: why that service is not ready, or an empty string.
    others: dict[str, str] = field(default_factory=dict)

    def runtime_ready(self, now: float) -> bool:
        """Whether sandbox-svc was seen recently enough."""
        return now - self.seen_at <= SEEN_LIMIT


def merge(findings: Findings, verbose: bool, now: float) -> api_pb2.StatusResponse:
    """Return the CRI answer that the findings stand for."""
    answer = api_pb2.StatusResponse()
    if findings.runtime is not None:
        answer.CopyFrom(findings.runtime)
    told = {condition.type: condition for condition in answer.status.conditions}
    del answer.status.conditions[:]
    conditions = [_runtime(findings, told, now), _network(findings, told)]
    conditions += [_other(name, trouble) for name, trouble in findings.others.items()]
    conditions += [told[name] for name in told if name not in {c.type for c in conditions}]
    answer.status.conditions.extend(conditions)
    if verbose:
        answer.info["services"] = json.dumps({"sandbox-svc": findings.trouble, **findings.others})
    else:
        answer.info.clear()
    return answer


def _runtime(findings: Findings, told: dict[str, api_pb2.RuntimeCondition], now: float) -> api_pb2.RuntimeCondition:
    if not findings.runtime_ready(now):
        return _condition("RuntimeReady", "SandboxServiceNotSeen", findings.trouble)
    return told.get("RuntimeReady") or _condition("RuntimeReady")


def _network(findings: Findings, told: dict[str, api_pb2.RuntimeCondition]) -> api_pb2.RuntimeCondition:
    """The network is as sandbox-svc last said: its restart does not take pod networks away."""
    return told.get("NetworkReady") or _condition("NetworkReady", "NetworkStateUnknown", findings.trouble or "unknown")


def _other(name: str, trouble: str) -> api_pb2.RuntimeCondition:
    return _condition(name, "NotReady", trouble) if trouble else _condition(name)


def _condition(name: str, reason: str = "", message: str = "") -> api_pb2.RuntimeCondition:
    return api_pb2.RuntimeCondition(type=name, status=not reason, reason=reason, message=message)


class Watch:
    """The poller: one thread for sandbox-svc, one for the other services, so that a hung one delays nobody."""

    def __init__(self, sandbox: Backend, probes: Sequence[Probe], clock: Callable[[], float] = time.monotonic) -> None:
        self.findings = Findings(others={probe.condition: f"{probe.name} has not been seen yet" for probe in probes})
        self._stub = api_pb2_grpc.RuntimeServiceStub(sandbox.channel)
        self._probes, self._clock = probes, clock
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._fresh = threading.Condition()
        self._round = 0

    def start(self) -> None:
        """Start polling in the background."""
        for work in (self._poll_sandbox, self._poll_others):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def stop(self) -> None:
        """Stop polling after the round under way."""
        self._stopped.set()
        self._wanted.set()

    def readiness(self) -> list[str]:
        """Return why the frontend is not ready: only the service without which no pod call works counts."""
        return [] if self.findings.runtime_ready(self._clock()) else [self.findings.trouble]

    def status(self, verbose: bool) -> api_pb2.StatusResponse:
        """Return the CRI Status; never waits for a service that did not answer when last asked."""
        if not self.findings.trouble:
            self._refresh()
        return merge(self.findings, verbose, self._clock())

    def _refresh(self) -> None:
        with self._fresh:
            # The round under way may have asked before the caller did; the one after it did not.
            target = self._round + 1
            self._wanted.set()
            self._fresh.wait_for(lambda: self._round >= target, _FRESH_WAIT)

    def _poll_sandbox(self) -> None:
        while not self._stopped.is_set():
            self._wanted.clear()
            self.ask_sandbox()
            with self._fresh:
                self._round += 1
                self._fresh.notify_all()
            self._wanted.wait(_RETRY_AFTER if self.findings.trouble else _POLL_EVERY)

    def ask_sandbox(self) -> None:
        """Ask sandbox-svc for its Status once and keep the answer."""
        try:
            answer = rpc.call(
                self._stub.Status, api_pb2.StatusRequest(verbose=True), service="sandbox-svc", timeout=_POLL_TIMEOUT
            )
        except (BulkheadError, grpc.RpcError) as error:
            self._lost(str(error) or type(error).__name__)
            return
        if self.findings.trouble:
            logger.info("sandbox-svc answers")
        self.findings.runtime, self.findings.seen_at, self.findings.trouble = answer, self._clock(), ""
        UP.labels("sandbox-svc").set(1)

    def _lost(self, why: str) -> None:
        if not self.findings.trouble:
            logger.warning("sandbox-svc does not answer: %s", why)
        self.findings.trouble = f"sandbox-svc does not answer: {why}"
        UP.labels("sandbox-svc").set(0)

    def _poll_others(self) -> None:
        while not self._stopped.is_set():
            for probe in self._probes:
                self._look(probe)
            waiting = any(self.findings.others.values())
            self._stopped.wait(_RETRY_AFTER * 5 if waiting else _POLL_EVERY)

    def _look(self, probe: Probe) -> None:
        try:
            trouble = probe.ask()
        except Exception as error:  # the poller must outlive whatever one answer holds
            logger.exception("asking %s failed", probe.name)
            trouble = f"{probe.name}: {error}"
        before = self.findings.others.get(probe.condition)
        if trouble and not before:
            logger.warning("%s is not ready: %s", probe.name, trouble)
        self.findings.others[probe.condition] = trouble
        UP.labels(probe.name).set(0 if trouble else 1)


def version(_request: api_pb2.VersionRequest) -> api_pb2.VersionResponse:
    """Answer Version: 0.1.0 is the kubelet's version of this message, as every runtime answers it."""
    return api_pb2.VersionResponse(
        version="0.1.0", runtime_name="bulkhead", runtime_version=__version__, runtime_api_version="v1"
    )
