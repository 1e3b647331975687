"""The heap before a fork."""

import gc
import itertools

from bulkhead import heap


def distances() -> set[int]:
    """Return how far from each other four new objects lie after holes were made and filled."""
    size = 496
    holes = [bytes(size - 33) for _ in range(400)]
    del holes[::3]
    filling = heap.fill_holes()
    fresh = [bytes(size - 33) for _ in range(4)]
    assert sum(len(block) for block in filling) < 2 << 20
    return {id(second) - id(first) for first, second in itertools.pairwise(fresh)}


def test_holes_are_filled() -> None:
    """Objects of a size that is filled stand side by side, though others of that size have died all over the heap."""
    # A thread that another test has left may make a hole of its own in between, but not each time.
    assert {496} in [distances() for _ in range(5)]


def test_what_is_alive_is_left_alone_by_the_collector() -> None:
    """After settling the collector sees nothing that was alive before."""
    kept = [[number] for number in range(100)]
    try:
        heap.settle()

        assert gc.get_freeze_count() > len(kept)
        assert not any(found is kept for found in gc.get_objects())
    finally:
        gc.unfreeze()
        heap._ballast.clear()
