"""The pod network of one configuration directory: its state, and pods attached to it and detached from it.

The configuration is looked at whenever it is needed (a directory scan of 30 µs), which notices a directory that
appears, is replaced or mounted over as well as a changed file: no watch to lose.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bulkhead import metrics
from bulkhead.config.model import Cni, Config, RuntimeHandler
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from sandbox_svc.cni import chain, conf, plugin
from sandbox_svc.cni.model import (
    DEFAULT_INTERFACE,
    INTERFACE_PREFIX,
    AddResult,
    Attachment,
    NetworkResult,
    NetworkState,
    addresses,
    prefer,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How many ADDs run at once: more only make the plugins wait for each other (iptables' lock, processors). DEL is not
#: limited: it waits for the kernel, not for processors.
ADDS_AT_ONCE = min(max(os.cpu_count() or 2, 2), 4)
#: How long the answer of the plugins' STATUS holds, and how long one network's may take, in seconds.
STATUS_PERIOD = 5.0
STATUS_LIMIT = 10.0

NOT_READY = "NetworkPluginNotReady"

_LOOPBACK: conf.Network = {"cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}


@dataclass(frozen=True)
class _Probe:
    """The last STATUS answers: for which configuration, when, and the refusal ("" for none)."""

    seen: conf.Loaded
    when: float
    refusal: str


class Manager:
    """Attaches pods to the networks of one configuration directory. Safe to use from many threads."""

    def __init__(self, config: Cni, timeout: float, *, gate: threading.Semaphore | None = None) -> None:
        """Take the configuration, the seconds a chain of plugins may take, and the gate that ADDs pass."""
        self._config = config
        self._directory = Path(config.conf_dir)
        self._runner = chain.Runner(config.bin_dirs, timeout, config.use_internal_loopback)
        self._gate = gate or threading.BoundedSemaphore(ADDS_AT_ONCE)
        self._lock = threading.Lock()
        self._fingerprint: conf.Fingerprint = None
        self._loaded: conf.Loaded | None = None
        self._probing = threading.Lock()
        self._probe: _Probe | None = None
        self._unready_since: float | None = None

    def networks(self) -> tuple[conf.Network, ...]:
        """Return the configuration lists in use now, () while the network is not ready."""
        return self._load().networks

    def status(self) -> NetworkState:
        """Return whether a pod could be attached now, and if not, what to look at.

        Waits for plugins' STATUS answers for STATUS_LIMIT seconds at most, and not at all while another thread does.
        """
        loaded = self._load()
        problem = loaded.problem or self._missing_binaries(loaded) or self._refusal(loaded)
        now = time.monotonic()
        if not problem:
            self._unready_since = None
            return NetworkState(ready=True)
        since = self._unready_since = self._unready_since or now
        return NetworkState(False, NOT_READY, self._explain(problem, loaded, now - since))

    def plan(self, attachment: Attachment) -> AddResult:
        """Return what `add` would do, to be written down before it does it; Unavailable while there is no network."""
        if not attachment.sandbox_id:
            raise InvalidArgument("CNI: the sandbox id is empty")
        loaded = self._load()
        if loaded.problem:
            raise Unavailable(self._explain(loaded.problem, loaded, 0))
        planned = [
            NetworkResult(f"{INTERFACE_PREFIX}{index}", network, None, chain.idle_plugins(network, attachment))
            for index, network in enumerate(loaded.networks)
        ]
        if not self._config.use_internal_loopback:
            planned.insert(0, NetworkResult("lo", _LOOPBACK))
        return AddResult(tuple(planned))

    def add(self, attachment: Attachment, plan: AddResult | None = None) -> AddResult:
        """Attach a pod to every network of the plan (made now if not given), and return its addresses and results.

        On an error some of the plan may have been done: the caller has to `delete` it.
        """
        planned = (plan or self.plan(attachment)).networks
        with metrics.stage("cni_gate"):
            self._gate.acquire()
        try:
            with metrics.stage("cni_add"):
                return self._attach(planned, attachment)
        finally:
            self._gate.release()

    def delete(self, attachment: Attachment, result: AddResult | None) -> None:
        """Detach a pod from the networks of an AddResult or plan; doing it again does nothing.

        Without a result the present configuration is used; if there is none either, nothing can have been added.
        Every network is tried; the first error is raised.
        """
        if result is None:
            loaded = self._load()
            if loaded.problem:
                logger.info("sandbox %s: no network to detach from: %s", attachment.sandbox_id, loaded.problem)
                return
            result = self.plan(attachment)
        with metrics.stage("cni_del"):
            work = [self._work(self._runner.delete, network, attachment) for network in result.networks]
            _raise_first(_gather(work, serially=self._config.setup_serially))

    def check(self, attachment: Attachment, result: AddResult) -> None:
        """Raise what the plugins' CHECK complains of."""
        for network in result.networks:
            self._runner.check(network, attachment)

    def gc(self, valid: Iterable[tuple[str, str]]) -> None:
        """Have the plugins free what belongs to none of the valid (sandbox id, interface) pairs.

        Only for a node where every attachment to these networks is ours: another runtime's pods are not in the set
        and would lose their addresses.
        """
        pairs = list(valid)
        for network in self._load().networks:
            self._runner.collect(network, pairs)

    def _load(self) -> conf.Loaded:
        """Return the configuration as the directory has it now."""
        with self._lock:
            seen = conf.fingerprint(self._directory)
            if self._loaded is None or seen != self._fingerprint:
                previous, self._loaded = self._loaded, conf.load(self._directory, self._config.max_conf_num)
                self._fingerprint = seen
                if previous != self._loaded:
                    _log_change(self._directory, self._loaded)
            return self._loaded

    def _missing_binaries(self, loaded: conf.Loaded) -> str:
        for network in loaded.networks:
            for entry in network["plugins"]:
                if entry["type"] == "loopback" and self._config.use_internal_loopback:
                    continue
                try:
                    plugin.find(entry["type"], self._config.bin_dirs)
                except NotFound as error:
                    return f'network "{network["name"]}": {error}'
        return ""

    def _refusal(self, loaded: conf.Loaded) -> str:
        """Return why the plugins' STATUS says no, "" if it does not; asked every STATUS_PERIOD seconds at most."""
        if all(conf.version(network) < (1, 1, 0) for network in loaded.networks):
            return ""
        probe = self._probe
        fresh = probe and probe.seen is loaded and time.monotonic() - probe.when < STATUS_PERIOD
        if not fresh and self._probing.acquire(blocking=probe is None):
            try:
                self._probe = probe = _Probe(loaded, time.monotonic(), self._ask_status(loaded))
            finally:
                self._probing.release()
        return probe.refusal if probe else ""

    def _ask_status(self, loaded: conf.Loaded) -> str:
        try:
            for network in loaded.networks:
                self._runner.status(network, STATUS_LIMIT)
        except BulkheadError as error:
            return str(error)
        return ""

    def _explain(self, problem: str, loaded: conf.Loaded, age: float) -> str:
        files = f" (files seen: {', '.join(loaded.files)})" if loaded.files else ""
        lasting = f", not ready for {age:.0f} s" if age >= 1 else ""
        return f"CNI configuration in {self._directory}{lasting}: {problem}{files}"

    def _attach(self, planned: Sequence[NetworkResult], attachment: Attachment) -> AddResult:
        work = [self._work(self._runner.add, network, attachment) for network in planned]
        networks = tuple(_raise_first(_gather(work, serially=self._config.setup_serially)))
        found = [ip for network in networks if network.interface == DEFAULT_INTERFACE for ip in _addresses(network)]
        if not found:
            raise FailedPrecondition(
                f'CNI ADD: network "{networks[-1].name}" gave {DEFAULT_INTERFACE} of sandbox '
                f"{attachment.sandbox_id} no address"
            )
        return AddResult(networks, prefer(found, self._config.ip_pref))

    @staticmethod
    def _work(
        method: Callable[[NetworkResult, Attachment], T], network: NetworkResult, attachment: Attachment
    ) -> Callable[[], T]:
        return lambda: method(network, attachment)


def managers(config: Config) -> dict[str, Manager]:
    """Return a manager for every runtime handler, and under "" the node's own; equal directories share one.

    A handler has networks of its own where its table sets cni_conf_dir (then with its cni_max_conf_num).
    """
    gate = threading.BoundedSemaphore(ADDS_AT_ONCE)
    made: dict[Cni, Manager] = {}

    def manager(cni: Cni) -> Manager:
        return made.setdefault(cni, Manager(cni, config.bulkhead.cni_timeout, gate=gate))

    found = {
        name: manager(_of_handler(config.runtime.cni, handler)) for name, handler in config.runtime.runtimes.items()
    }
    return {**found, "": manager(config.runtime.cni)}


def _of_handler(cni: Cni, handler: RuntimeHandler) -> Cni:
    if not handler.cni_conf_dir:
        return cni
    return replace(cni, conf_dir=handler.cni_conf_dir, max_conf_num=handler.cni_max_conf_num)


def _addresses(network: NetworkResult) -> list[str]:
    try:
        return addresses(network.result or {}, DEFAULT_INTERFACE)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f'CNI ADD: network "{network.name}" answered with a result of another form than '
            f"the specification's: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _gather(work: Sequence[Callable[[], T]], *, serially: bool) -> list[T | Exception]:
    """Return each piece's result or exception, in order; at the same time unless told otherwise."""

    def attempt(piece: Callable[[], T]) -> T | Exception:
        try:
            return piece()
        except Exception as error:  # every network is tried; _raise_first raises it
            return error

    if serially or len(work) < 2:
        return [attempt(piece) for piece in work]
    with ThreadPoolExecutor(len(work), "cni") as pool:
        return list(pool.map(attempt, work))


def _raise_first(outcomes: Iterable[T | Exception]) -> list[T]:
    done: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
        done.append(outcome)
    return done


def _log_change(directory: Path, loaded: conf.Loaded) -> None:
    names = ", ".join(str(network["name"]) for network in loaded.networks)
    logger.info("CNI configuration of %s: %s", directory, f"networks {names}" if names else loaded.problem)
