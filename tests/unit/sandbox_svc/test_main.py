"""How long a stop may take."""

from bulkhead.supervisor import claims, stack
from sandbox_svc import __main__ as main
from sandbox_svc.nri import hooks


def test_a_stop_ends_before_the_supervisor_loses_patience() -> None:
    """Calls, removals and plugins that take all of their time are through a second before the SIGKILL would come."""
    assert main.CALL_SECONDS < main.STOP_SECONDS
    assert main.STOP_SECONDS + hooks.SHUTDOWN + 1.0 <= stack.STOP_PATIENCE
    # The next supervisor waits for services whose own was killed: none is through before that.
    assert claims.ORPHANS_WAIT > stack.STOP_PATIENCE
