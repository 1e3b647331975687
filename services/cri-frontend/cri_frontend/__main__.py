"""The `cri-frontend` program."""

import argparse
import sys

from bulkhead import config, log, service
from bulkhead.errors import BulkheadError
from cri_frontend.server import Frontend


def main() -> int:
    """Serve until SIGTERM or SIGINT; exit status 1 with one line if it cannot start."""
    parser = argparse.ArgumentParser(prog="cri-frontend", description="Bulkhead's CRI socket")
    parser.add_argument("--config", help="configuration file; built-in defaults without it")
    options = parser.parse_args()
    stop = service.StopSignal()
    try:
        loaded = config.load(options.config)
        logger = log.setup("cri_frontend", loaded.debug.level, loaded.debug.format)
        frontend = Frontend(loaded)
    except (BulkheadError, OSError) as error:
        sys.stderr.write(f"cri-frontend: {error}\n")
        return 1
    logger.info("stopping on %s", stop.wait())
    frontend.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
