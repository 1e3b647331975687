from hypothesis import given
from hypothesis import strategies as st

from sandbox_svc.stats import network


def line(name: str, *numbers: int) -> str:
    return f"{name:>6}: " + " ".join(map(str, numbers))


def test_counters_are_taken_from_their_columns() -> None:
    """Bytes, packets, errors and drops come from columns 1 to 4 and 9 to 12; the loopback is left out."""
    text = [line("lo", *range(16)), line("eth0", *range(1, 17)), line("a:b", *range(16)), "garbage"]
    assert network.parse(text) == (
        network.Interface("eth0", 1, 3, 9, 11, rx_packets=2, rx_dropped=4, tx_packets=10, tx_dropped=12),
        network.Interface("a:b", 0, 2, 8, 10, rx_packets=1, rx_dropped=3, tx_packets=9, tx_dropped=11),
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
