"""How the frontend learns whether the services it does not call are well: their /readyz, or their socket."""

import http.client
from dataclasses import dataclass
from pathlib import Path

from bulkhead.sockets import is_live

_TIMEOUT = 2.0
_ANSWER_LIMIT = 2000


@dataclass(frozen=True)
class Probe:
    """One service to look at; port is its loopback metrics port, 0 or less when that is not known."""

    name: str
    condition: str
    socket: Path
    port: int

    def ask(self) -> str:
        """Return why the service is not ready, or an empty string if it is."""
        if self.port <= 0:
            return "" if is_live(str(self.socket)) else f"{self.name} is not running"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            text = answer.read(_ANSWER_LIMIT).decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            return f"{self.name} does not answer on port {self.port}: {error}"
        finally:
            connection.close()
        return "" if answer.status == 200 else f"{self.name}: {text}"
