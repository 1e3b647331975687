"""The key directory's changes, brought to the decryptor: it sees a copy, which root makes anew when a file changes."""

import logging

from bulkhead.config.model import Config
from bulkhead.launch.directories import credentials
from bulkhead.launch.refresh import Signature, refresh, signature
from bulkhead.launch.users import Users
from bulkhead.processors import keys_path
from bulkhead.supervisor.loop import Loop
from bulkhead.supervisor.stack import Stack

logger = logging.getLogger("bulkhead.supervisor")

_DECRYPTOR = "decryptor"
#: Seconds between looks at the directory: a stat for each key.
INTERVAL = 1.0
#: Seconds that a decryptor runs before its mounts are touched: by then it has made its own.
_SETTLED = 1.0


class KeyCourier:
    """Looks at the key directory every second and delivers what has changed."""

    def __init__(self, loop: Loop, stack: Stack, config: Config, users: Users) -> None:
        self._loop, self._stack = loop, stack
        self._source = keys_path(config)
        self._target = str(credentials(config.state, _DECRYPTOR))
        owner = users.of(_DECRYPTOR)
        self._owner = (owner.uid, owner.gid)
        self._seen: Signature = ()

    def start(self) -> None:
        """Look from now on. What the services find when they start counts as delivered."""
        if self._source:
            self._seen = signature(self._source)
            self._loop.after(INTERVAL, self._look)

    def _look(self) -> None:
        if self._stack.stopping:
            return
        if signature(self._source) != self._seen:
            self.deliver()
        self._loop.after(INTERVAL, self._look)

    def deliver(self) -> None:
        """Make the copy anew, which the decryptor sees within a second; tried again at the next look if that fails."""
        running = self._stack.running(_DECRYPTOR)
        if not self._source or running is None or running[1] < _SETTLED:
            return
        # Before copying: what changes meanwhile is seen as a change at the next look.
        seen = signature(self._source)
        try:
            refresh(running[0], self._source, self._target, self._owner)
        except OSError as error:
            logger.error("the decryptor still has the keys as they were: %s", error.strerror or error)
            return
        self._seen = seen
        logger.info("the decryptor has the keys as they are now in %s", self._source)
