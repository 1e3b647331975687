"""What comes out of the decryptor while a layer is turned."""

import os
import threading

import pytest

from bulkhead.errors import Cancelled, Unavailable
from image_svc.patience import Patience
from image_svc.transfer.ciphering import pieces


def test_all_of_it_comes_out() -> None:
    """Every byte comes out, up to the pipe's end."""
    reader, writer = os.pipe()
    os.write(writer, b"layer")
    os.close(writer)

    assert b"".join(pieces(reader, Patience(60.0, "turning"), lambda: None)) == b"layer"
    os.close(reader)


def test_a_silent_decryptor_does_not_hold_a_cancelled_call() -> None:
    """A pipe that stays open and empty ends with the caller's patience."""
    reader, writer = os.pipe()
    patience = Patience(60.0, "turning")
    threading.Timer(0.2, patience.cancel).start()

    with pytest.raises(Cancelled):
        list(pieces(reader, patience, lambda: None))
    os.close(reader)
    os.close(writer)


def test_a_decryptor_found_to_hang_ends_it() -> None:
    """What the decryptor's silence has come to is raised, though its pipe stays open and empty."""
    reader, writer = os.pipe()

    def hangs() -> None:
        raise Unavailable("no sign of life")

    with pytest.raises(Unavailable):
        list(pieces(reader, Patience(60.0, "turning"), hangs))
    os.close(reader)
    os.close(writer)
