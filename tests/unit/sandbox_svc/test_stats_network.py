from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.stats import network


def line(name: str, *numbers: int) -> str:
    return f"{name:>6}: " + " ".join(map(str, numbers))


def test_counters_are_taken_from_their_columns() -> None:
    """Received and sent bytes and errors come from columns 1, 3, 9 and 11; the loopback is left out."""
    text = [line("lo", *range(16)), line("eth0", *range(1, 17)), line("a:b", *range(16)), "garbage"]
    assert network.parse(text) == (
        network.Interface("eth0", rx_bytes=1, rx_errors=3, tx_bytes=9, tx_errors=11),
        network.Interface("a:b", rx_bytes=0, rx_errors=2, tx_bytes=8, tx_errors=10),
    )


def test_namespaces_that_are_gone_are_left_out() -> None:
    """A pod that vanished between two steps is missing from the answer."""
    assert network.read(["/does/not/exist"]) == {}
    assert network.read([]) == {}


@given(st.lists(st.integers(0, 2**64 - 1), min_size=16, max_size=16))
def test_large_counters_survive(numbers: list[int]) -> None:
    """64-bit counters are read whole, also where they touch the colon."""
    text = "eth0:" + " ".join(map(str, numbers))
    [found] = network.parse([text])
    assert (found.rx_bytes, found.tx_bytes) == (numbers[0], numbers[8])
