"""The `decryptor` program."""

import argparse
import functools
import logging
import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc

from bulkhead import config, log, metrics, paths, rpc, service
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from bulkhead.processors import decoder_environment
from bulkhead.proto import keys_pb2_grpc
from decryptor import confinement, files, hardening, listener
from decryptor.desk import Desk
from decryptor.helper import Helper
from decryptor.keyring import Keyring
from decryptor.policy import Policy
from decryptor.service import Keys
from decryptor.sessions import Sessions
from decryptor.tools import Tools
from decryptor.watch import Watch

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
        server, sessions = _start(config.load(options.config), options.decryption_keys_path, helper)
    except (BulkheadError, OSError) as error:
        sys.stderr.write(f"decryptor: {error}\n")
        return 1
    logger.info("stopping on %s", stop.wait())
    sessions.close()
    server.stop(1).wait()
    return 0


def _start(loaded: Config, option: str | None, helper: Helper) -> tuple[grpc.Server, Sessions]:
    log.setup("decryptor", loaded.debug.level, loaded.debug.format)
    if trouble := hardening.lock_memory():
        logger.warning("%s", trouble)
    if trouble := confinement.install():
        logger.warning("%s", trouble)
    places = files.sources(option, os.environ, loaded.bulkhead.decryption_keys_path)
    desk = Desk(
        functools.partial(_read, places),
        tools=Tools(_environment(loaded, os.environ), helper),
        policy=Policy(tuple(loaded.bulkhead.key_policy.values())),
        remember=loaded.bulkhead.key_check_cache,
        enabled=bool(loaded.images.key_model),
    )
    desk.keyring.publish()
    Watch(places, desk.reload).start()
    face = listener.inherited(os.environ)
    port = loaded.bulkhead.metrics_ports.get("decryptor", -1)
    metrics.serve("decryptor", list, port=port, listener=face, notes=desk.complaints)
    path = str(paths.service_socket(loaded.state, "decryptor"))
    sessions = Sessions(str(paths.layer_socket(loaded.state)), desk, _callers(loaded.bulkhead.users))
    # The directory's set-group-id bit gives the sockets the group of their callers.
    server = rpc.server(lambda made: keys_pb2_grpc.add_KeysServicer_to_server(Keys(desk), made), path, 0o660)
    logger.info("serving on %s, keys loaded: %s", path, desk.keyring.describe())
    return server, sessions


def _read(places: list[tuple[Path, str]]) -> Keyring:
    return Keyring(files.read_all(places))


def _environment(loaded: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what ocicrypt reads out of the environment: what stands in ctd-decoder's entries wins."""
    return {**environ, **decoder_environment(loaded)}


def _callers(users: Mapping[str, str]) -> list[int]:
    """Return the users that may hand over layers, beside root: image-svc's, if there is one."""
    try:
        return [pwd.getpwnam(users["image-svc"]).pw_uid]
    except KeyError:
        return []


if __name__ == "__main__":
    sys.exit(main())
