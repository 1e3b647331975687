"""Work behind the answers: what a stop waits for, and for how long."""

import threading
import time

from sandbox_svc.background import Background


def test_tidied_waits_for_what_was_answered() -> None:
    """Everything begun by `tidy` has ended when `tidied` returns; what runs behind is not waited for."""
    background, forever = Background(), threading.Event()
    ended: list[int] = []

    def remove(number: int) -> None:
        time.sleep(0.05)
        ended.append(number)

    background.behind("watch", forever.wait)
    for number in range(3):
        background.tidy("removal", remove, number)
    background.tidied(10)

    assert sorted(ended) == [0, 1, 2]
    forever.set()
    background.stop()


def test_tidied_gives_up() -> None:
    """Work that does not end holds a stop up for so long and no longer."""
    background, forever = Background(), threading.Event()
    background.tidy("removal", forever.wait)
    began = time.monotonic()
    background.tidied(0.1)

    assert 0.1 <= time.monotonic() - began < 5
    forever.set()
    background.stop()


def test_a_failure_is_no_stop() -> None:
    """A removal that fails counts as ended, and nothing is begun once the service stops."""
    background = Background()
    begun: list[int] = []
    background.tidy("removal", lambda: 1 / 0)
    background.tidied(10)
    background.stop()
    background.tidy("removal", begun.append, 1)
    background.tidied(10)

    assert begun == []
