"""`image-svc-unpack --config FILE`: the confined helper that writes layers to disk for image-svc."""

import argparse
import gc
import logging
import os
import pwd
import sys
from pathlib import Path

from bulkhead import config, log, paths, seqpacket
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError, FailedPrecondition
from image_svc.unpack import confine, seccomp
from image_svc.unpack.directory import Snapshots
from image_svc.unpack.operations import Operations
from image_svc.unpack.protocol import Limits
from image_svc.unpack.server import Server

logger = logging.getLogger("image_svc.unpack")


def main() -> int:
    """Serve until SIGTERM; 1 with a line on standard error if that is not possible."""
    parser = argparse.ArgumentParser(prog="image-svc-unpack", description=__doc__)
    parser.add_argument("--config", metavar="FILE", default="", help="containerd's config.toml (built-in defaults)")
    arguments = parser.parse_args()
    try:
        settings = config.load(arguments.config)
        log.setup("image_svc.unpack", settings.debug.level, settings.debug.format)
        serve(settings)
    except (BulkheadError, OSError) as error:
        print(f"image-svc-unpack: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def serve(settings: Config) -> None:
    """Serve the snapshots of one stack; FailedPrecondition names what is missing."""
    machine = os.uname().machine
    if not seccomp.supported(machine):
        raise FailedPrecondition(f"there is no system call filter for {machine}; x86_64 and aarch64 are supported")
    client = user_id(settings.bulkhead.users["image-svc"])
    socket_path = paths.unpack_socket(settings.state)
    socket_path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    snapshots = Snapshots(settings.root / "snapshots")
    listener = seqpacket.listen(str(socket_path), 0o600, uid=client)
    confine.enter_helper()
    gc.collect()
    gc.freeze()  # workers share what is here now as long as nobody writes to it
    logger.info("unpacks below %s for user %d", settings.root, client)
    Server(listener, Operations(snapshots, limits(settings), exports(settings)), client).run()
    Path(socket_path).unlink(missing_ok=True)


def limits(settings: Config) -> Limits:
    """Return what the configuration allows a layer."""
    own = settings.bulkhead
    return Limits(entries=own.unpack_max_entries, bytes=own.unpack_max_bytes, seconds=own.unpack_timeout)


def exports(settings: Config) -> dict[str, Path]:
    """Return the directories of the proxy snapshotters that have one, by name."""
    named = {name: settings.exports_of(name) for name in settings.proxy_plugins}
    return {name: root for name, root in named.items() if root is not None}


def user_id(name: str) -> int:
    """Return the id of the user that image-svc runs as."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise FailedPrecondition(f"user {name!r} of image-svc does not exist on this system") from error


if __name__ == "__main__":
    sys.exit(main())
