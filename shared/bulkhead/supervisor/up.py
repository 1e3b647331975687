"""`bulkhead up` from its first check to its last line."""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from bulkhead import __version__, cni_default, heap, log
from bulkhead.errors import BulkheadError, FailedPrecondition
from bulkhead.launch import directories, reach, users
from bulkhead.sockets import is_live
from bulkhead.supervisor import claims, faces, pods, provision
from bulkhead.supervisor.courier import KeyCourier
from bulkhead.supervisor.loop import Loop
from bulkhead.supervisor.roster import (
    START,
    ZYGOTE,
    Entry,
    roster,
    sockets,
)
from bulkhead.supervisor.settings import Settings
from bulkhead.supervisor.stack import Stack, ZygoteKeeper, with_listener
from bulkhead.supervisor.warm import warm

logger = logging.getLogger("bulkhead.supervisor")

#: Seconds between looks at what is starting, and at the zygote's log afterwards.
_START_TICK, _TICK = 0.05, 0.5
#: Seconds after which the log says what is being waited for.
_SLOW = 10.0
#: Seconds that services have to settle after all of them listen.
_SETTLE = 2.0


class Up:
    """One run of the supervisor."""

    def __init__(self, settings: Settings, programs: Path) -> None:
        self.config = config = settings.config
        self._programs = programs
        self.users = users.look_up(config.bulkhead.users)
        self._check_reach()
        claims.refuse_long_paths(config)
        directories.make_bases(config)
        self._locks = claims.lock((config.root, config.state))
        claims.refuse_live_sockets(config)
        claims.refuse_busy_ports(config)
        directories.make(config, self.users)
        provision.hold_keys(config)
        settings.write()
        self._cni_conf = self._default_network()
        self._pid_file = claims.pid_file(config)
        self._pid_file.write_text(f"{os.getpid()}\n")
        self._loop = Loop()
        self._listener = self._decryptor_listener()
        entries = {entry.name: self._completed(entry) for entry in roster(config, self.users, os.environ, programs)}
        self._zygote = ZygoteKeeper(
            self._loop,
            entries.pop(ZYGOTE),
            lambda: pods.zygote_pid(config),
            config.debug.format,
            self._give_up,
        )
        self._stack = Stack(self._loop, list(entries.values()), config.debug.format, self._give_up)
        self._stack.on_start = self._started
        self._keys = KeyCourier(self._loop, self._stack, self.config, self.users)
        self._failed = ""
        self._began = time.monotonic()
        self._up_since = 0.0
        self._slow_said = False

    def run(self) -> int:
        """Run until told to stop; 0, or 1 if a service did not start."""
        stop = self._stop
        # A closed terminal ends what runs in it; a daemon takes SIGHUP as a request to look again.
        hangup = stop if sys.stdin is not None and sys.stdin.isatty() else self._reload
        self._loop.on_signals({signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: hangup})
        self._zygote.start()
        claims.publish_address(self.config)
        heap.settle()
        for name in START:
            if name != ZYGOTE:
                self._stack.start(name)
        self._loop.after(_START_TICK, self._look)
        self._keys.start()
        self._loop.run()
        self._finish()
        if self._failed:
            sys.stderr.write(f"bulkhead: {self._failed}\n")
        return 1 if self._failed else 0

    def _check_reach(self) -> None:
        """Refuse before anything is made if a service could not read its own program."""
        needed = [Path(sys.executable), self._programs / "cri-frontend", Path(log.__file__)]
        for service, user in self.users.by_service.items():
            reach.require(user, service, needed)

    def _default_network(self) -> Path | None:
        """On built-in defaults a node without any pod network gets a bridge."""
        if self.config.path:
            return None
        cni = self.config.runtime.cni
        try:
            written = cni_default.write(Path(cni.conf_dir), cni.bin_dirs)
        except BulkheadError as error:
            logger.warning("%s", error)
            return None
        if written:
            logger.info("no pod network was configured; a bridge is, in %s", written)
        return written

    def _decryptor_listener(self) -> socket.socket | None:
        port = self.config.bulkhead.metrics_ports.get("decryptor", -1)
        return claims.listener("decryptor", port) if port >= 0 else None

    def _completed(self, entry: Entry) -> Entry:
        if entry.name == "decryptor" and self._listener is not None:
            return with_listener(entry, self._listener.fileno())
        return entry

    def _started(self, name: str) -> None:
        if name == "cri-frontend":
            self._await_socket()

    def _await_socket(self, tries: int = 200) -> None:
        """Give the CRI socket its configured owner once the frontend has made it anew."""
        path = sockets(self.config)["cri-frontend"]
        if is_live(str(path)):
            claims.give_socket(self.config)
        elif tries and not self._stack.stopping:
            self._loop.after(0.05, lambda: self._await_socket(tries - 1))

    def _look(self) -> None:
        """While starting: see who listens. Afterwards: hand on the zygote's log."""
        self._zygote.follow_log()
        if self._stack.stopping:
            return
        if not self._stack.ready:
            self._look_for_ready()
        self._loop.after(_TICK if self._stack.ready else _START_TICK, self._look)

    def _look_for_ready(self) -> None:
        waiting = faces.not_up(self.config)
        if not waiting:
            self._up_since = self._up_since or time.monotonic()
            troubles = faces.troubles(self.config)
            # What has only just started may complain of what starts beside it.
            if not troubles or time.monotonic() - self._up_since > _SETTLE:
                self._stack.ready = self._zygote.ready = True
                self._announce(troubles)
        elif not self._slow_said and time.monotonic() - self._began > _SLOW:
            self._slow_said = True
            logger.warning("still waiting for %s", "; ".join(waiting))

    def _announce(self, troubles: list[str]) -> None:
        endpoint = f"unix://{claims.address(self.config)}"
        notes = "".join(f"  note:     {line}\n" for line in troubles)
        text = (
            f"Bulkhead {__version__} is ready after {time.monotonic() - self._began:.1f} s.\n"
            f"  crictl:   crictl --runtime-endpoint {endpoint} --image-endpoint {endpoint} info\n"
            f"  kubelet:  kubelet --container-runtime-endpoint={endpoint}\n"
            f"{notes}"
            "  stop:     Ctrl-C, or SIGTERM to "
            f"pid {os.getpid()}; pods go on running\n"
        )
        with contextlib.suppress(OSError):  # whoever started it may not be listening any more
            sys.stdout.write(text)
            sys.stdout.flush()

    def _reload(self) -> None:
        logger.info("SIGHUP: the decryptor gets the keys as they are now; stream-svc reads its TLS pair")
        self._keys.deliver()
        self._stack.signal("stream-svc", signal.SIGHUP)

    def _give_up(self, why: str) -> None:
        self._failed = why
        self._stop()

    def _stop(self) -> None:
        if not self._stack.stopping:
            logger.info("stopping")
        self._stack.stop(self._halt)

    def _halt(self) -> None:
        self._loop.stopped = True

    def _finish(self) -> None:
        """Take away what belongs to the running stack, and everything else if no pod needs it."""
        claims.withdraw_address(self.config)
        self._pid_file.unlink(missing_ok=True)
        self._zygote.follow_log()
        zygote = self._zygote.release()
        if shims := pods.live_shims(self.config):
            logger.info("stopped; %d pods go on, and the next start finds them", len(shims))
            return
        pods.end_zygote(zygote)  # which may not listen yet
        kept = pods.clear_state(self.config)
        for line in kept:
            logger.warning("%s", line)
        if self._cni_conf is not None and not kept:
            cni_default.remove(self._cni_conf)
        logger.info("stopped; nothing is left running")


def up(path: str | None, programs: Path) -> int:
    """Run the stack of that configuration file; FailedPrecondition and its like say why it cannot start."""
    settings = Settings(path)
    log.setup("bulkhead", settings.config.debug.level, settings.config.debug.format)
    for warning in settings.warnings:
        logger.warning("%s", warning)
    warm()
    try:
        return Up(settings, programs).run()
    except OSError as error:
        raise FailedPrecondition(f"{error.filename or 'system call'}: {error.strerror}") from error
    finally:
        settings.close()
