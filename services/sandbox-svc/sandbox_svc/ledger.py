"""The undoing of what was made: each ledger entry names one thing, and each kind has one function that removes it.

An entry is written before its thing is made, so undoing must succeed where the thing was never made.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from bulkhead.errors import BulkheadError, DeadlineExceeded
from sandbox_svc.store.database import Database, Entry

logger = logging.getLogger(__name__)

Undo = Callable[[Entry], None]

#: Seconds that one thread waits for another at an entry: more than anything takes to be undone that is not stuck, a
#: chain of CNI plugins included. What waits may hold a pod's lock, and a pod must not be lost to one thread that is.
PATIENCE = 300.0


class Ledger:
    """Undoes an owner's entries, last made first; what fails stays in the ledger for the next try.

    Of two threads at one entry, such as a stop and the exit that it causes, one undoes it and the other waits for it:
    plugins are told once. All take entries in the same order, so none waits for another in a circle. For a thread that
    is stuck, another waits PATIENCE, which is DeadlineExceeded. Of the kinds `once`, each entry is recorded as undone
    before the next is looked at: what tells others would tell them again if this process were killed in what follows.
    """

    def __init__(self, database: Database, undoers: Mapping[str, Undo], once: Collection[str] = ()) -> None:
        self._database = database
        self._undoers = undoers
        self._once = once
        self._changed = threading.Condition()
        #: Entries that are being undone, until that is recorded, by their numbers.
        self._busy: set[int] = set()

    def undo(self, owner: str, *, only: Collection[str] = ()) -> list[Exception]:
        """Undo an owner's entries (all, or those of some kinds) and return what went wrong."""
        done: list[Entry] = []
        errors: list[Exception] = []
        with self._taking() as take:
            for entry in self._database.entries(owner):
                if only and entry.kind not in only:
                    continue
                try:
                    if take(entry):
                        self._undoers[entry.kind](entry)
                        done.append(entry)
                        if entry.kind in self._once:
                            self._database.undone(done)
                            done.clear()
                except Exception as error:  # one thing that cannot be undone must not keep the others
                    expected = isinstance(error, BulkheadError | OSError)
                    where = f"{owner[:13]}: undoing its {entry.kind}"
                    logger.warning("%s failed: %s", where, error, exc_info=not expected)
                    errors.append(error)
            if done:
                self._database.undone(done)
        return errors

    @contextmanager
    def _taking(self) -> Iterator[Callable[[Entry], bool]]:
        """Yield what takes an entry until the end of the block: False for one that another thread has undone."""
        taken: set[int] = set()

        def take(entry: Entry) -> bool:
            with self._changed:
                if not self._changed.wait_for(lambda: entry.seq not in self._busy, PATIENCE):
                    raise DeadlineExceeded(f"another thread has not come to its end in {PATIENCE:g} s")
                self._busy.add(entry.seq)
            taken.add(entry.seq)
            return self._database.has(entry)

        try:
            yield take
        finally:
            with self._changed:
                self._busy -= taken
                self._changed.notify_all()
