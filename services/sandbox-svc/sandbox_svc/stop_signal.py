"""Which signal asks a container to stop."""

import functools
import logging
import signal
from typing import Any

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.store.records import ContainerRecord

logger = logging.getLogger(__name__)


def stop_signal(record: ContainerRecord) -> int:
    """Return the signal of the container's configuration, else the image's, else SIGTERM."""
    if record.config.stop_signal != cri.SIGNAL_RUNTIME_DEFAULT:
        return cri_signal(record.config.stop_signal)
    if record.image_stop_signal:
        try:
            return number(record.image_stop_signal)
        except ValueError as error:
            logger.warning("container %s: the image's StopSignal %s; SIGTERM is sent", record.id, error)
    return signal.SIGTERM


def shown(record: ContainerRecord) -> "cri.Signal":
    """Return the signal that ContainerStatus shows: SIGNAL_RUNTIME_DEFAULT where neither says one."""
    if record.config.stop_signal != cri.SIGNAL_RUNTIME_DEFAULT or not record.image_stop_signal:
        return record.config.stop_signal
    try:
        return _by_number().get(number(record.image_stop_signal), cri.SIGNAL_RUNTIME_DEFAULT)
    except ValueError:
        return cri.SIGNAL_RUNTIME_DEFAULT


@functools.cache
def _by_number() -> "dict[int, cri.Signal]":
    """Return the CRI's signals by number; of two names for one number the first counts (SIGCHLD, not SIGCLD)."""
    values: list[Any] = list(reversed(cri.Signal.values()))
    return {cri_signal(value): value for value in values if value != cri.SIGNAL_RUNTIME_DEFAULT}


def cri_signal(value: "cri.Signal") -> int:
    """Return the number of a CRI signal: SIGNAL_SIGRTMINPLUS3 is SIGRTMIN+3."""
    name = cri.Signal.Name(value).removeprefix("SIGNAL_")
    return number(name.replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-"))


def number(name: str) -> int:
    """Return a signal's number by number or name ("15", "TERM", "SIGTERM", "RTMIN+3"); ValueError if there is none."""
    text = name.strip().upper().removeprefix("SIG")
    if text.isdigit():
        number = int(text)
    elif text.startswith(("RTMIN", "RTMAX")):
        base = signal.SIGRTMIN if text.startswith("RTMIN") else signal.SIGRTMAX
        number = int(base) + int(text[5:] or 0)
    else:
        number = int(signal.Signals[f"SIG{text}"]) if f"SIG{text}" in signal.Signals.__members__ else 0
    if not 0 < number <= signal.SIGRTMAX:
        raise ValueError(f"{name!r} is not a signal")
    return number
