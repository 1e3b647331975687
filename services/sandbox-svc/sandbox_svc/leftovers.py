"""What is owned by nothing that exists any more: undone at the start, and again every minute until it is gone.

It is what a creation or removal could not take back at once (image-svc was restarting, a CNI plugin failed), or was
about to when sandbox-svc ended.
"""

import logging

from bulkhead import metrics
from sandbox_svc.node import Node

logger = logging.getLogger(__name__)

#: Seconds between two tries.
PERIOD = 60.0


def watch(node: Node) -> None:
    """Undo what is left over, until the service is being stopped; for a thread of its own."""
    while True:
        try:
            sweep(node)
        except Exception:
            metrics.ERRORS.labels("leftovers").inc()
            logger.exception("what is left over could not be looked at; tried again in %.0f s", PERIOD)
        if node.background.stopping.wait(PERIOD):
            return


def sweep(node: Node) -> None:
    """Try once to undo all that is left over: containers first, then pods, for their shims are asked for the former."""
    # In this order: what is being made is in the model before the ledger knows it.
    owners = node.database.owners()
    owners -= set(node.model.keys())
    pods = {owner for owner in owners if any(entry.kind == "shim" for entry in node.database.entries(owner))}
    for wave in (owners - pods, pods):
        for ident in wave:
            logger.info("taking back what was made for %s, which does not exist", ident)
        for part in [node.background.part(node.ledger.undo, ident) for ident in wave]:
            part.exception()  # the ledger has told of it
