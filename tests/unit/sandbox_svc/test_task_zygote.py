"""Orders to the zygote."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bulkhead import paths, seqpacket
from sandbox_svc.task.zygote import Zygote


@contextmanager
def late_zygote(state: Path, answer: dict[str, Any]) -> Iterator[list[object]]:
    """A zygote that listens after 0.3 s and answers one order; what it was told."""
    path = paths.zygote_socket(state)
    path.parent.mkdir(parents=True)
    orders: list[object] = []

    def serve() -> None:
        time.sleep(0.3)
        with seqpacket.listen(str(path)) as listener:
            sock, _ = listener.accept()
            with sock:
                orders.append(seqpacket.receive(sock)[0])
                seqpacket.send(sock, answer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield orders
    thread.join(60)


def test_a_fork_waits_for_a_zygote_that_is_started_again(tmp_path: Path) -> None:
    """A new pod outlives the zygote's restart; the order is sent once, to the one that answers."""
    with late_zygote(tmp_path, {"forked": {"pid": 7, "start_time": 9}}) as orders:
        forked = Zygote(tmp_path, 0).fork("a" * 64)
    assert (forked.pid, forked.start_time, len(orders)) == (7, 9, 1)


def test_a_zygote_that_starts_later_is_asked_for_crun_all_the_same(tmp_path: Path) -> None:
    """Both are started side by side: who asks first must not have every pod made by runc for that."""
    with late_zygote(tmp_path, {"probed": {"path": "/usr/bin/crun", "works": True}}) as orders:
        found = Zygote(tmp_path, 0).working_crun()
    assert found == "/usr/bin/crun"
    assert orders == [{"probe": {"binary": "crun"}}]
