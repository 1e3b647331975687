"""`bulkhead prepare`: as root, what `bulkhead up` does before it starts a service, for an init system that starts it.

The units run it with ExecStartPre=+ and start the service with the copy of the configuration it wrote.
"""

import argparse
from pathlib import Path

from bulkhead import config
from bulkhead.launch import directories, users
from bulkhead.supervisor import claims, provision
from bulkhead.supervisor.roster import START


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("prepare", help="make a service's directories and its copy of the configuration")
    parser.add_argument("service", choices=START)
    parser.add_argument("--to", metavar="FILE", required=True, help="where to write the copy")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prepare one service; safe to repeat and beside running ones."""
    loaded = config.load(options.config)
    known = users.look_up(loaded.bulkhead.users)
    directories.make_bases(loaded)
    directories.make(loaded, known)
    provision.hold_keys(loaded)
    provision.write_config(loaded, known, options.service, Path(options.to))
    if options.service == "cri-frontend":
        claims.publish_address(loaded)
    return 0
