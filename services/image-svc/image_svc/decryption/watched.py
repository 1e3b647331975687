"""A layer that the decryptor works on, watched: one that dies is told by the kernel, one that hangs by its silence."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from bulkhead import layers
from bulkhead.errors import BulkheadError, Internal, Unavailable
from bulkhead.proto import keys_pb2
from image_svc import threads

#: Signs of life asked for within the time that silence may last: one that comes late is no silence yet.
SIGNS = 4

_Result = TypeVar("_Result", keys_pb2.DecryptResult, keys_pb2.EncryptResult)


def signs(silence: float) -> float:
    """Return the seconds between signs of life to ask for, where `silence` seconds count as a hang."""
    return min(max(silence / SIGNS, layers.OFTEN), layers.SELDOM)


class DecryptorGone(Unavailable):
    """The decryptor ended or hangs in the middle of a layer, or is not there."""


class Watched(Generic[_Result]):
    """Waits for the result in a thread, from the start of the work to its end or to `silence` seconds without a sign.

    `ended` is called in that thread once the outcome is known, whatever it is.
    """

    def __init__(
        self, work: layers.Work, kind: type[_Result], silence: float, digest: str, ended: Callable[[], None]
    ) -> None:
        self._work, self._silence, self._digest, self._ended = work, silence, digest, ended
        self._kind: type[_Result] = kind
        self._outcome: Future[_Result] = Future()
        self._thread = threads.start(self._watch, "watched")

    def check(self) -> None:
        """Raise what the work has failed with, if it has; DecryptorGone if the decryptor ended or is silent."""
        if self._outcome.done():
            self._outcome.result(timeout=0)

    def result(self, timeout: float) -> _Result:
        """Return the result within `timeout` seconds, of work whose last byte has been read, or raise as check()."""
        try:
            return self._outcome.result(timeout)
        except TimeoutError:
            text = f"layer {self._digest}: the decryptor said nothing for {timeout:g} s after its last byte"
            raise DecryptorGone(text) from None

    def close(self) -> None:
        """Hang up: what is not finished is given up."""
        self._work.hang_up()
        self._thread.join()
        self._work.close()

    def _watch(self) -> None:
        try:
            self._outcome.set_result(self._work.watched(self._kind, self._silence))
        except (Unavailable, layers.Silent) as error:
            gone = DecryptorGone(f"layer {self._digest}: {error}")
            gone.__cause__ = error
            self._outcome.set_exception(gone)
        except BulkheadError as error:
            self._outcome.set_exception(error)
        except Exception as error:
            made = Internal(f"the decryptor's client failed: {type(error).__name__}: {error}")
            made.__cause__ = error
            self._outcome.set_exception(made)
        finally:
            # One that comes back to life finds that nobody wants the layer any more.
            self._work.hang_up()
            self._ended()
