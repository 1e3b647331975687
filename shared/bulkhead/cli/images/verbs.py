"""The verbs of `bulkhead images`, one module each."""

import argparse
import sys

from bulkhead.cli.images import (
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
from bulkhead.cli.images.exits import INTERRUPTED, TEXT, status
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
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in _MODULES:
        module.add_parser(verbs)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the verb and return its exit status, after one line of what went wrong."""
    try:
        done: int = options.run_verb(options)
    except BulkheadError as error:
        sys.stderr.write(f"bulkhead images {options.verb}: {error}\n")
        return status(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return done
