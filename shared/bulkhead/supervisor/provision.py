"""What a service finds when it starts: its copy of the configuration, and a key directory that can be hidden."""

import logging
import os
from pathlib import Path

from bulkhead.config.model import Config
from bulkhead.config.resolved import resolved_for
from bulkhead.files import write_atomic
from bulkhead.launch import reach
from bulkhead.launch.users import Users
from bulkhead.processors import keys_path

logger = logging.getLogger("bulkhead.supervisor")


def write_config(config: Config, users: Users, service: str, path: Path) -> None:
    """Write the service's copy of the configuration, for its user alone.

    FailedPrecondition if that user cannot reach the copy or the content directory.
    """
    owner = users.of(service)
    write_atomic(path, resolved_for(service, config), 0o400, durable=False)
    os.chown(path, owner.uid, owner.gid)
    if owner.uid:
        reach.require(owner, service, [path, config.root / "blobs"], "choose other directories, or run")


def hold_keys(config: Config) -> None:
    """Make the key directory if it is missing: only what is there at the start can be hidden from the others."""
    keys = Path(keys_path(config) or "/")
    if keys.exists():
        return
    try:
        keys.mkdir(mode=0o700, parents=True)
    except OSError as error:
        logger.warning("key directory %s cannot be made: %s", keys, error.strerror)
