"""The node's budget for unpacking: how many layers may be fed to the unpack helper at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.courtesy import step_aside
from image_svc.patience import Patience
from image_svc.slots import Slots


class Turn:
    """One layer's share of the budget, given back while it has nothing to unpack."""

    def __init__(self, slots: Slots, patience: Patience) -> None:
        self._slots = slots
        self._patience = patience
        self._held = False

    def take(self) -> None:
        """Wait for calls under way, and for a slot unless one is held; raises as the patience does."""
        step_aside()
        if not self._held:
            self._patience.acquire(self._slots)
            self._held = True

    def rest(self) -> None:
        """Leave the slot to others."""
        if self._held:
            self._held = False
            self._slots.release()


class Turns:
    """Slots for layers whose bytes flow, and room for those that wait for a download in the middle.

    A layer that comes slowly would else keep a slot from one that is here. What waits costs two processes' memory.
    """

    def __init__(self, slots: int) -> None:
        self._slots = Slots(slots)
        # The helper takes 64 orders at a time, containers' among them.
        self._begun = Slots(min(max(4 * slots, 8), 48))

    @contextmanager
    def begin(self, patience: Patience) -> Iterator[Turn]:
        """Yield a turn once there is room for one more layer under way; it holds no slot yet."""
        patience.acquire(self._begun)
        turn = Turn(self._slots, patience)
        try:
            yield turn
        finally:
            turn.rest()
            self._begun.release()
