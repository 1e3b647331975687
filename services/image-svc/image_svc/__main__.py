"""The `image-svc` program."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from bulkhead import config, log, service
from bulkhead.errors import BulkheadError
from image_svc.service import Service


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; 1 with a line on standard error if the service cannot start."""
    parser = argparse.ArgumentParser(prog="image-svc", description="Pulls and keeps container images.")
    parser.add_argument("--config", metavar="FILE", help="configuration file; built-in defaults without it")
    options = parser.parse_args(arguments)
    stop = service.StopSignal()
    try:
        loaded = config.load(options.config)
        logger = log.setup("image_svc", loaded.debug.level, loaded.debug.format)
        running = Service(loaded)
        running.start()
    except (BulkheadError, OSError) as error:
        sys.stderr.write(f"image-svc: {error}\n")
        return 1
    logger.info("stopping on %s", stop.wait())
    running.stop()
    # A thread may still wait for a registry that does not answer; the interpreter would wait for the thread.
    logging.shutdown()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
