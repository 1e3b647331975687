"""The face with metrics and health, which any process of the node can reach."""

import socket
import struct
import threading
import time
import urllib.request

import pytest

from bulkhead import metrics


def get(port: int, path: str) -> bytes:
    """Return the body of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return bytes(answer.read())


def test_paths() -> None:
    """Metrics and health are served; what is not ready is told line by line."""
    port = metrics.serve("test", list, notes=lambda: ["a note"])
    assert b"bulkhead_build_info" in get(port, "/metrics")
    assert get(port, "/healthz") == b"ok\n"
    assert get(port, "/readyz") == b"ok\na note\n"


def test_silent_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond the limit are closed at once, and there is room again when others have ended."""
    monkeypatch.setattr(metrics, "CONNECTION_LIMIT", 3)
    port = metrics.serve("test", list)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as further:
        assert further.recv(1) == b""
    for sock in silent:
        sock.close()
    deadline = time.monotonic() + 60
    while True:
        try:
            assert get(port, "/healthz") == b"ok\n"
            break
        except OSError:
            assert time.monotonic() < deadline, "no room again"
            time.sleep(0.05)


def test_a_client_that_gives_up_is_not_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    """A connection reset before its answer leaves no traceback."""
    asked, gone = threading.Event(), threading.Event()

    def readiness() -> list[str]:
        asked.set()
        gone.wait(30)
        return []

    port = metrics.serve("test", readiness)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert asked.wait(30)
    gone.set()
    assert get(port, "/healthz") == b"ok\n"
    time.sleep(0.05)
    assert "Traceback" not in capfd.readouterr().err
