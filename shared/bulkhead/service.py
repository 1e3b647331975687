"""The life of a service process: it serves until it is told to stop."""

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
