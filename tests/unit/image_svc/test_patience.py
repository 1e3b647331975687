"""Whoever is called off hears of it, however many wait in the same way."""

import pytest

from bulkhead.errors import Cancelled
from image_svc.patience import Patience


class Connections:
    """Has one way to wake all who wait at it."""

    def __init__(self) -> None:
        self.woken = 0

    def hang_up(self) -> None:
        """Wake them."""
        self.woken += 1


def test_two_that_are_woken_in_one_way() -> None:
    """The one that has come to its end takes nothing from the other."""
    patience, connections = Patience(60.0, "push"), Connections()
    with patience.interruptible(connections.hang_up):
        with patience.interruptible(connections.hang_up):
            pass
        patience.cancel()
        assert connections.woken == 1
    with pytest.raises(Cancelled), patience.interruptible(connections.hang_up):
        raise AssertionError("it was called off before")
