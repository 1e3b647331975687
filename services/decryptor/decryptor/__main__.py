"""The `decryptor` program."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from bulkhead import config, service
from bulkhead.errors import BulkheadError
from decryptor import hardening
from decryptor.helper import Helper

logger = logging.getLogger("decryptor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit status 1 with one line if it cannot start."""
    parser = argparse.ArgumentParser(prog="decryptor", description="Bulkhead's keeper of private keys")
    parser.add_argument("--config", help="configuration file; built-in defaults without it")
    parser.add_argument("--decryption-keys-path", help="directory of private keys; wins over the configuration")
    options = parser.parse_args(arguments)
    stop = service.StopSignal()
    # For the thread that watches the keys; threads inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        hardening.close_to_others()
        # Before the first key is read, the first thread runs and the filter forbids it.
        helper = Helper.fork()
        # And before what the helper has no use for is imported: it would be kept in memory twice.
        from decryptor.serve import start

        server, sessions = start(config.load(options.config), options.decryption_keys_path, helper)
    except (BulkheadError, OSError) as error:
        sys.stderr.write(f"decryptor: {error}\n")
        return 1
    logger.info("stopping on %s", stop.wait())
    sessions.close()
    server.stop(1).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
