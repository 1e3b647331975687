"""The `decryptor` program."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import grpc

from bulkhead import config, log, metrics, paths, rpc, service
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from bulkhead.proto import keys_pb2_grpc
from decryptor import files, hardening, listener
from decryptor.keyring import Keyring
from decryptor.service import Keys

logger = logging.getLogger("decryptor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit status 1 with one line if it cannot start."""
    parser = argparse.ArgumentParser(prog="decryptor", description="Bulkhead's keeper of private keys")
    parser.add_argument("--config", help="configuration file; built-in defaults without it")
    parser.add_argument("--decryption-keys-path", help="directory of private keys; wins over the configuration")
    options = parser.parse_args(arguments)
    stop = service.StopSignal()
    try:
        hardening.close_to_others()
        server = _start(config.load(options.config), options.decryption_keys_path)
    except (BulkheadError, OSError) as error:
        sys.stderr.write(f"decryptor: {error}\n")
        return 1
    logger.info("stopping on %s", stop.wait())
    server.stop(1).wait()
    return 0


def _start(loaded: Config, option: str | None) -> grpc.Server:
    log.setup("decryptor", loaded.debug.level, loaded.debug.format)
    if trouble := hardening.lock_memory():
        logger.warning("%s", trouble)
    keyring = Keyring(files.read_all(files.sources(option, os.environ, loaded.bulkhead.decryption_keys_path)))
    keyring.publish()
    face = listener.inherited(os.environ)
    port = loaded.bulkhead.metrics_ports.get("decryptor", -1)
    metrics.serve("decryptor", list, port=port, listener=face, notes=keyring.complaints)
    servicer = Keys(keyring, enabled=bool(loaded.images.key_model))
    path = str(paths.service_socket(loaded.state, "decryptor"))
    # The directory's set-group-id bit gives the socket the group of its callers.
    server = rpc.server(lambda made: keys_pb2_grpc.add_KeysServicer_to_server(servicer, made), path, 0o660)
    logger.info("serving on %s, keys loaded: %s", path, keyring.describe())
    return server


if __name__ == "__main__":
    sys.exit(main())
