"""image-svc's side of the unpack helper while the helper is being started anew."""

import threading
import time
from pathlib import Path

import pytest

from bulkhead import seqpacket
from image_svc.unpack.client import UnpackClient, UnpackerGone


def answer_late(path: Path, seconds: float) -> threading.Thread:
    """Begin to listen after a while, answer one call, and end."""

    def work() -> None:
        time.sleep(seconds)
        with seqpacket.listen(str(path)) as listener:
            listener.settimeout(60)
            connection, _ = listener.accept()
            with connection:
                request, _ = seqpacket.receive(connection)
                assert request is not None
                seqpacket.send(connection, {"ok": {"asked": request["op"]}})

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_call_waits_for_a_helper_that_is_being_started_anew(tmp_path: Path) -> None:
    """A call that finds no listener is made once there is one, without its caller's knowing."""
    path = tmp_path / "s"
    thread = answer_late(path, 0.3)
    began = time.monotonic()
    UnpackClient(path).remove("1")
    assert 0.3 <= time.monotonic() - began < 9
    thread.join(60)
    assert not thread.is_alive()


def test_whether_it_is_there_is_said_at_once(tmp_path: Path) -> None:
    """A ping waits for no restart."""
    began = time.monotonic()
    with pytest.raises(UnpackerGone, match="unpack helper"):
        UnpackClient(tmp_path / "s").ping()
    assert time.monotonic() - began < 5
