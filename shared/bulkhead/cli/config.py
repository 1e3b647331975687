"""`bulkhead config`: check a file, show what is in force and where it came from, print the defaults."""

import argparse
import sys

from bulkhead.config import examine
from bulkhead.config.render import default_file, show
from bulkhead.config.resolved import resolved_for
from bulkhead.errors import BulkheadError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `config` and its sub-commands to the command line."""
    parser = commands.add_parser("config", help="check or show the configuration")
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="read the configuration, say what is wrong with it, start nothing")
    check.add_argument("--strict", action="store_true", help="exit 1 on warnings too")
    shown = verbs.add_parser("show", help="print every setting and the file and line it came from")
    verbs.add_parser("default", help="print a file that states every default")
    resolved = verbs.add_parser("resolve", help="print the copy of the configuration that one service receives")
    resolved.add_argument("service")
    for verb in (check, shown, resolved):
        verb.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the sub-command; 0 when all is well, 1 when the configuration is not."""
    if arguments.verb == "default":
        sys.stdout.write(default_file())
        return 0
    try:
        loaded = examine(arguments.config)
    except BulkheadError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if arguments.verb == "resolve":
        sys.stdout.write(resolved_for(arguments.service, loaded.config).decode() + "\n")
        return 0
    for warning in loaded.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if arguments.verb == "show":
        sys.stdout.writelines(f"{line}\n" for line in show(loaded))
        return 0
    source = loaded.config.path or "the built-in configuration"
    sys.stdout.write(f"{source}: ok, {len(loaded.warnings)} warnings\n")
    return 1 if arguments.strict and loaded.warnings else 0
