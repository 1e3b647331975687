"""The shim's loop: futures, coroutines, timers, turns, and byte pipes through it."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bulkhead.errors import DeadlineExceeded
from sandbox_svc.shim import pipes
from sandbox_svc.shim.loop import Future, Loop, Turn
from sandbox_svc.shim.pipes import Outlet, Source, Tap


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    made.open()
    yield made
    made.close()


def spin(loop: Loop, future: Future[object] | Future[None], seconds: float = 5.0) -> None:
    """Turn the loop until a future is settled."""
    deadline = time.monotonic() + seconds
    while not future.done and time.monotonic() < deadline:
        loop.turn(0.05)
    assert future.done


def test_a_coroutine_waits_and_returns(loop: Loop) -> None:
    """A value set later is what the await gives, an error is raised there."""
    gate: Future[int] = Future()
    broken: Future[int] = Future()

    async def work() -> int:
        with suppress(KeyError):
            await broken
        return await gate + 1

    done = loop.spawn(work())
    assert not done.done
    broken.fail(KeyError("x"))
    gate.set(41)
    spin(loop, done)  # type: ignore[arg-type]  # a future of int is one of object

    assert done.result() == 42


def test_within_gives_up_in_time_and_leaves_the_future_alone(loop: Loop) -> None:
    """DeadlineExceeded names what was waited for; the future may still be settled later."""
    slow: Future[str] = Future()

    async def work() -> str:
        return await loop.within(slow, 0.01, "the snail")

    done = loop.spawn(work())
    spin(loop, done)  # type: ignore[arg-type]  # a future of str is one of object
    with pytest.raises(DeadlineExceeded, match="the snail"):
        done.result()
    slow.set("late")

    assert slow.result() == "late"


def test_a_turn_is_taken_in_order(loop: Loop) -> None:
    """Coroutines pass one by one in the order in which they came, also after an error."""
    turn, order = Turn(), list[int]()
    gates: list[Future[None]] = [Future() for _ in range(3)]

    async def pass_through(n: int) -> None:
        async with turn:
            order.append(n)
            await gates[n]
            if n == 0:
                raise KeyError

    tasks = [loop.spawn(pass_through(n)) for n in range(3)]
    for n in range(3):
        gates[n].set(None)
        spin(loop, tasks[n])

    assert order == [0, 1, 2]


def test_a_failing_handler_ends_nothing(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a callback is logged and the loop goes on."""
    after: Future[None] = Future()
    loop.soon(lambda: 1 // 0)
    loop.soon(lambda: after.set(None))
    spin(loop, after)

    assert "ZeroDivisionError" in caplog.text


def test_a_cancelled_timer_never_fires(loop: Loop) -> None:
    """Only the timers that were not cancelled are called, in their order."""
    fired: list[str] = []
    end: Future[None] = Future()
    loop.later(0.02, lambda: end.set(fired.append("b")))  # type: ignore[func-returns-value]  # None is what is set
    loop.later(0.01, lambda: fired.append("a"))
    loop.later(0.005, lambda: fired.append("never")).cancel()
    spin(loop, end)

    assert fired == ["a", "b"]


class Keeper:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data, self.finished = b"", False

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        self.finished = True


def test_a_source_is_read_to_its_end(loop: Loop) -> None:
    """Everything written arrives, then the sink is finished and the descriptor closed."""
    reader, writer = os.pipe()
    sink = Keeper()
    source = Source(loop, reader, [sink])
    os.write(writer, b"some")
    loop.turn(1)
    os.write(writer, b"thing")
    os.close(writer)
    spin(loop, source.ended)

    assert (sink.data, sink.finished) == (b"something", True)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reader)


def test_a_full_outlet_holds_its_source_up_and_loses_nothing(loop: Loop) -> None:
    """Where the reader of a pipe is slow, the source waits for it."""
    reader, writer = os.pipe()
    far_reader, far_writer = os.pipe()
    source = Source(loop, reader, [Outlet(loop, far_writer)])
    data = os.urandom(300_000)
    os.set_blocking(writer, False)
    os.set_blocking(far_reader, False)
    sent, got = 0, b""
    deadline = time.monotonic() + 60
    while not source.ended.done or got != data:
        assert time.monotonic() < deadline
        if sent < len(data):
            with suppress(BlockingIOError):
                sent += os.write(writer, data[sent:])
            if sent == len(data):
                os.close(writer)
        loop.turn(0.001)
        with suppress(BlockingIOError):
            got += os.read(far_reader, 10_000)
    os.close(far_reader)

    assert got == data


def test_a_tap_is_cut_and_the_source_goes_on(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing is cut beyond the limit; other sinks get everything."""
    monkeypatch.setattr(pipes, "TAP_LIMIT", 10_000)
    reader, writer = os.pipe()
    far_reader, far_writer = os.pipe()
    cut: list[bool] = []
    sink = Keeper()
    source = Source(loop, reader, [Tap(loop, far_writer, lambda: cut.append(True)), sink])
    for _ in range(40):
        os.write(writer, bytes(5_000))
        loop.turn(1)
    os.close(writer)
    spin(loop, source.ended)
    os.close(far_reader)

    assert cut == [True]
    assert len(sink.data) == 200_000


def test_an_outlet_without_a_reader_is_broken(loop: Loop) -> None:
    """Writing to a pipe that nobody reads any more raises, now and later."""
    reader, writer = os.pipe()
    os.close(reader)
    outlet = Outlet(loop, writer)
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            outlet.write(b"x")

    assert outlet.closed.done
