"""The life of a service process: it serves until it is told to stop."""

import os
import signal

_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})


class StopSignal:
    """SIGTERM and SIGINT, held back from the moment this is made, which must be before any thread starts.

    A signal to the process goes to any thread that does not block it, and threads inherit the mask of their maker.
    """

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)

    def wait(self) -> str:
        """Wait for one of the two and return its name; a second one then ends the process at once."""
        received = signal.sigwait(_STOPS)
        for each in _STOPS:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        return signal.Signals(received).name


class StopNotice:
    """SIGTERM and SIGINT as StopSignal, for a process that starts others: they would inherit a mask.

    The kernel may hand the signal to any thread, and a main thread that waits for a lock would then sleep on. The byte
    that the interpreter writes for every signal wakes it whichever thread that was. To be made in the main thread.
    """

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in _STOPS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait(self) -> str:
        """Wait for one of the two and return its name; a second one then ends the process at once."""
        while (number := os.read(self._reader, 1)[0]) not in _STOPS:
            pass  # another signal with a handler
        for each in _STOPS:
            signal.signal(each, signal.SIG_DFL)
        return signal.Signals(number).name
