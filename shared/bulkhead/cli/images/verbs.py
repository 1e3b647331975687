"""The verbs of `bulkhead images`, one module each."""

import argparse
import errno
import signal
import sys
import threading

from bulkhead.cli import output
from bulkhead.cli.images import (
    arguments,
    decrypt,
    encrypt,
    evict,
    explain,
    exporting,
    importing,
    inspect,
    layerinfo,
    listing,
    prune,
    pull,
    push,
    remove,
    tag,
    usage,
    watch,
)
from bulkhead.cli.images.exits import FAILED, FULL, INTERRUPTED, TEXT, status
from bulkhead.errors import BulkheadError

_MODULES = (
    listing,
    pull,
    push,
    tag,
    remove,
    inspect,
    layerinfo,
    importing,
    exporting,
    encrypt,
    decrypt,
    evict,
    usage,
    prune,
    explain,
    watch,
)
_EPILOG = f"""An IMAGE is a name (busybox, docker.io/library/busybox:1.37, registry:5000/app@sha256:…), an id, or the
beginning of an id. `bulkhead images VERB --help` shows examples of each verb.

{TEXT}"""


def fill(parser: argparse.ArgumentParser) -> None:
    """Add every verb."""
    parser.epilog = _EPILOG
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=arguments.Interspersed)
    for module in _MODULES:
        module.add_parser(verbs)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the verb and return its exit status, after one line of what went wrong."""
    _clean_up_when_told_to_end()
    try:
        done: int = options.run_verb(options)
        sys.stdout.flush()
    except BulkheadError as error:
        _complain(options, str(error))
        return status(error)
    except KeyboardInterrupt:
        _complain(options, "interrupted")
        return INTERRUPTED
    except OSError as error:
        # Those of files are told as errors of ours where they are opened.
        if isinstance(error, BrokenPipeError) or error.filename is not None:
            raise
        _complain(options, f"standard output: {error.strerror}")
        output.discard()
        return FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else FAILED
    return done


def _complain(options: argparse.Namespace, text: str) -> None:
    sys.stderr.write(f"bulkhead images {options.verb}: {text}\n")


def _clean_up_when_told_to_end() -> None:
    """Have SIGTERM and a lost terminal end the command as Ctrl-C does: no partial file stays, the display is closed."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
