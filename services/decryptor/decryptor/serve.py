"""Putting the decryptor together: keys, sockets, the face of its metrics. Imported after the helper was forked."""

import functools
import logging
import os
import pwd
from collections.abc import Mapping
from pathlib import Path

import grpc
from prometheus_client import Gauge

from bulkhead import log, metrics, paths, rpc
from bulkhead.config.model import Config
from bulkhead.processors import decoder_environment
from bulkhead.proto import keys_pb2_grpc
from decryptor import confinement, files, hardening, landlock, listener
from decryptor.desk import Desk
from decryptor.helper import Helper
from decryptor.keyring import Keyring
from decryptor.policy import Policy
from decryptor.service import Keys
from decryptor.sessions import Sessions
from decryptor.tools import Tools
from decryptor.watch import Watch

logger = logging.getLogger("decryptor")

LOCKED = Gauge("bulkhead_decryptor_memory_locked", "1 if the decryptor's memory is kept out of swap.")


def start(loaded: Config, option: str | None, helper: Helper) -> tuple[grpc.Server, Sessions]:
    """Read the keys and serve; `option` is the key directory of the command line, if any."""
    log.setup("decryptor", loaded.debug.level, loaded.debug.format)
    trouble = hardening.lock_memory()
    LOCKED.set(0 if trouble else 1)
    if trouble:
        logger.warning("%s", trouble)
    # Before the filter, which does not let this process ask.
    if not landlock.available():
        logger.warning("the kernel has no Landlock: programs of key providers could read the keys' files")
    if trouble := confinement.install():
        logger.warning("%s", trouble)
    places = files.sources(option, os.environ, loaded.bulkhead.decryption_keys_path)
    helper.hidden = tuple(str(place) for place, _ in places)
    desk = Desk(
        functools.partial(_read, places),
        tools=Tools(_environment(loaded, os.environ), helper, loaded.bulkhead.key_timeout),
        policy=Policy(tuple(loaded.bulkhead.key_policy.values())),
        remember=loaded.bulkhead.key_check_cache,
        enabled=bool(loaded.images.key_model),
    )
    desk.keyring.publish()
    Watch(places, desk.reload, helper.alive).start()
    face = listener.inherited(os.environ)
    port = loaded.bulkhead.metrics_ports.get("decryptor", -1)
    metrics.serve("decryptor", list, port=port, listener=face, notes=desk.complaints)
    path = str(paths.service_socket(loaded.state, "decryptor"))
    # Before the socket beside it is replaced: another decryptor may be serving there.
    rpc.refuse_live(path)
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
