"""Waiting for the signal that ends a service."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from bulkhead.service import StopNotice


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put the test run's own handlers back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_another_thread_gets_ends_the_wait(number: signal.Signals) -> None:
    """The main thread wakes although the kernel gave the signal to a thread that runs no handlers."""
    notice = StopNotice()

    def strike() -> None:
        time.sleep(0.02)
        signal.pthread_kill(threading.get_ident(), number)

    thread = threading.Thread(target=strike)
    thread.start()

    assert notice.wait() == number.name
    thread.join(60)


def test_children_do_not_inherit_a_mask() -> None:
    """What a service starts can be stopped as usual."""
    StopNotice()

    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
