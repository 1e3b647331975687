"""The undoing of what was made: each ledger entry names one thing, and each kind has one function that removes it.

An entry is written before its thing is made, so undoing must succeed where the thing was never made.
"""

import logging
from collections.abc import Callable, Collection, Mapping

from bulkhead.errors import BulkheadError
from sandbox_svc.store.database import Database, Entry

logger = logging.getLogger(__name__)

Undo = Callable[[Entry], None]


class Ledger:
    """Undoes an owner's entries, last made first; what fails stays in the ledger for the next try."""

    def __init__(self, database: Database, undoers: Mapping[str, Undo]) -> None:
        self._database = database
        self._undoers = undoers

    def undo(self, owner: str, *, only: Collection[str] = ()) -> list[Exception]:
        """Undo an owner's entries (all, or those of some kinds) and return what went wrong."""
        done: list[Entry] = []
        errors: list[Exception] = []
        for entry in self._database.entries(owner):
            if only and entry.kind not in only:
                continue
            try:
                self._undoers[entry.kind](entry)
                done.append(entry)
            except Exception as error:  # one thing that cannot be undone must not keep the others
                expected = isinstance(error, BulkheadError | OSError)
                logger.warning("%s: undoing its %s failed: %s", owner[:13], entry.kind, error, exc_info=not expected)
                errors.append(error)
        if done:
            self._database.undone(done)
        return errors
