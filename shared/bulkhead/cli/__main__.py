"""The `bulkhead` program. Each command is a module with add_parser(), imported only for its own sake.

argparse serves: the commands are few, and a framework would be one more thing to keep in a root process.
"""

import argparse
import sys
from collections.abc import Sequence

from bulkhead import __version__
from bulkhead.cli import config, prepare, status, up
from bulkhead.errors import BulkheadError


def parser() -> argparse.ArgumentParser:
    """Return the whole command line."""
    made = argparse.ArgumentParser(prog="bulkhead", description="A Kubernetes container runtime in compartments.")
    made.add_argument("--version", action="version", version=f"bulkhead {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (up, status, config, prepare):
        module.add_parser(commands)
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, or 1 after one line of what went wrong."""
    options = parser().parse_args(arguments)
    try:
        status_code: int = options.run(options)
    except BulkheadError as error:
        sys.stderr.write(f"bulkhead: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return status_code


def _version(_options: argparse.Namespace) -> int:
    sys.stdout.write(f"bulkhead {__version__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
