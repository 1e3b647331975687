"""`bulkhead prepare`: as root, what `bulkhead up` does before it starts a service, for an init system that starts it.

The units run it with ExecStartPre=+ and start the service with the copy of the configuration it wrote. `bulkhead
prepare keys` says which key files systemd would not hand to the decryptor.
"""

import argparse
import sys
from pathlib import Path

from bulkhead import config
from bulkhead.errors import InvalidArgument
from bulkhead.launch import credentials, directories, users
from bulkhead.processors import keys_path
from bulkhead.supervisor import claims, provision
from bulkhead.supervisor.roster import START

_KEYS = "keys"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("prepare", help="make a service's directories and its copy of the configuration")
    parser.add_argument("service", choices=(*START, _KEYS), help=f"{_KEYS}: look for key files that systemd refuses")
    parser.add_argument("--to", metavar="FILE", help="where to write the copy")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prepare one service; safe to repeat and beside running ones."""
    loaded = config.load(options.config)
    if options.service == _KEYS:
        found = credentials.complaints(Path(keys_path(loaded)))
        sys.stderr.writelines(f"bulkhead prepare: {complaint}\n" for complaint in found)
        return 1 if found else 0
    if not options.to:
        raise InvalidArgument("--to is missing: where to write the service's copy of the configuration")
    known = users.look_up(loaded.bulkhead.users)
    directories.make_bases(loaded)
    directories.make(loaded, known)
    provision.hold_keys(loaded)
    provision.write_config(loaded, known, options.service, Path(options.to))
    if options.service == "cri-frontend":
        claims.publish_address(loaded)
    return 0
