"""The collector leaves alone what a pull relies on, and no pull waits for it that wants something else."""

import threading

from image_svc.leases import Leases


def test_what_is_claimed_stays() -> None:
    """As long as any lease holds a key nothing is done to it; afterwards it is."""
    leases = Leases()
    with leases.lease() as first, leases.lease() as second:
        first.claim("a", "b")
        second.claim("a")
        assert not leases.unless_claimed("a", lambda: True)
    with leases.lease() as third:
        third.claim("b")
        assert leases.unless_claimed("a", lambda: True)
        assert not leases.unless_claimed("b", lambda: True)


def test_only_who_wants_what_goes_waits_for_it() -> None:
    """While something is removed, however long that takes, other things can be claimed, and itself only afterwards."""
    leases = Leases()
    removing, go_on, claimed = threading.Event(), threading.Event(), threading.Event()

    def remove() -> bool:
        removing.set()
        return go_on.wait(60)

    def want() -> None:
        with leases.lease() as lease:
            lease.claim("x", "old")
            claimed.set()

    collector = threading.Thread(target=leases.unless_claimed, args=("old", remove))
    collector.start()
    assert removing.wait(60)
    with leases.lease() as lease:
        lease.claim("new")
        assert not leases.unless_claimed("old", lambda: True)
        puller = threading.Thread(target=want)
        puller.start()
        assert not claimed.wait(0.1)
        go_on.set()
        assert claimed.wait(60)
    puller.join(60)
    collector.join(60)
