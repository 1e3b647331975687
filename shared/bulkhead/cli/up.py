"""`bulkhead up`: run the whole stack in the foreground."""

import argparse

from bulkhead import config


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("up", help="run the whole stack in the foreground, and restart what dies")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; pods outlive it."""
    # Not at the top: `bulkhead status` has no use for it.
    from bulkhead.supervisor.up import up

    return up(config.load(options.config))
