"""Orders to the zygote."""

import threading
import time
from pathlib import Path

from bulkhead import paths, seqpacket
from sandbox_svc.task.zygote import Zygote


def test_a_fork_waits_for_a_zygote_that_is_started_again(tmp_path: Path) -> None:
    """A new pod outlives the zygote's restart; the order is sent once, to the one that answers."""
    path = paths.zygote_socket(tmp_path)
    path.parent.mkdir(parents=True)
    orders: list[object] = []

    def serve() -> None:
        time.sleep(0.3)
        with seqpacket.listen(str(path)) as listener:
            sock, _ = listener.accept()
            with sock:
                orders.append(seqpacket.receive(sock)[0])
                seqpacket.send(sock, {"forked": {"pid": 7, "start_time": 9}})

    thread = threading.Thread(target=serve)
    thread.start()
    forked = Zygote(tmp_path, 0).fork("a" * 64)
    thread.join(5)
    assert (forked.pid, forked.start_time, len(orders)) == (7, 9, 1)
