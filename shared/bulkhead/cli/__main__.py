"""The `bulkhead` program. Each command is a module with add_parser(), imported only for its own sake.

argparse serves: it is there, starts in no time, and its help takes examples; typer would bring click and rich into
every command, the supervisor's included, for declarations that are shorter by a line. The verbs of `images` are
declared when that command was chosen, so that no other pays for gRPC.
"""

import argparse
import sys
from collections.abc import Sequence

from bulkhead import __version__
from bulkhead.cli import config, images, output, prepare, run, status, up
from bulkhead.errors import BulkheadError


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """Return the command line, with every verb of the command that was chosen."""
    made = argparse.ArgumentParser(prog="bulkhead", description="A Kubernetes container runtime in compartments.")
    made.add_argument("--version", action="version", version=f"bulkhead {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (up, run, status, config, prepare):
        module.add_parser(commands)
    images.add_parser(commands, chosen=chosen in ("images", "image"))
    commands.add_parser("version", help="print the version").set_defaults(run=_version)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, or 1 after one line of what went wrong."""
    output.complete()
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser(given[0] if given else "").parse_args(given)
    try:
        status_code: int = options.run(options)
        sys.stdout.flush()
    except BulkheadError as error:
        sys.stderr.write(f"bulkhead: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not output.reader_gone():
            raise
        output.discard()
        return output.PIPE
    return status_code


def _version(_options: argparse.Namespace) -> int:
    sys.stdout.write(f"bulkhead {__version__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
