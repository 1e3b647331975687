"""`bulkhead up`: run the whole stack in the foreground."""

import argparse
import os

from bulkhead.errors import PermissionDenied


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("up", help="run the whole stack in the foreground, and restart what dies")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Become the supervisor, which runs until SIGTERM or SIGINT; pods outlive it."""
    if os.geteuid() != 0:
        raise PermissionDenied("bulkhead up must be run as root: it makes pods, and starts services as other users")
    # Not at the top: other commands have no use for it.
    from bulkhead.supervisor.__main__ import become

    become(os.path.abspath(options.config) if options.config else None)
