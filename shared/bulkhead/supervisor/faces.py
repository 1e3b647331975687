"""The services seen from outside: their sockets and their /readyz."""

import http.client
from dataclasses import dataclass

from bulkhead.config.model import Config
from bulkhead.sockets import is_live
from bulkhead.supervisor.roster import sockets

_TIMEOUT = 2.0
_ANSWER_LIMIT = 64 * 1024


@dataclass(frozen=True)
class Face:
    """How one service looks: whether its socket listens, and what its /readyz says, line by line."""

    name: str
    listens: bool
    ready: bool
    lines: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """`ready`, `not ready` or `down`."""
        if not self.listens:
            return "down"
        return "ready" if self.ready else "not ready"


def look(config: Config, name: str) -> Face:
    """Look at one service; one without a metrics port is ready when its socket listens."""
    listens = is_live(str(sockets(config)[name]))
    port = config.bulkhead.metrics_ports.get(name, -1)
    if not listens or port <= 0:
        return Face(name, listens, listens)
    status, lines = ask(port, "/readyz")
    shown = tuple(line for line in lines if line != "ok")
    if status == 0:
        return Face(name, listens, False, (f"port {port} does not answer", *shown))
    return Face(name, listens, status == 200, shown)


def ask(port: int, path: str) -> tuple[int, list[str]]:
    """GET from a loopback port: status and lines, or 0 and the reason."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_LIMIT).decode(errors="replace").splitlines()
    except (OSError, http.client.HTTPException) as error:
        return 0, [str(error)]
    finally:
        connection.close()


def all_faces(config: Config) -> list[Face]:
    """Look at every service of the stack."""
    return [look(config, name) for name in sockets(config)]


def not_up(config: Config) -> list[str]:
    """Return what keeps the stack from taking calls: sockets nobody serves, and a frontend without sandbox-svc."""
    waiting = [f"{name} to listen" for name, path in sockets(config).items() if not is_live(str(path))]
    if waiting:
        return waiting
    frontend = look(config, "cri-frontend")
    return [] if frontend.ready else [f"cri-frontend ({', '.join(frontend.lines)})"]


def troubles(config: Config) -> list[str]:
    """Return one line for each thing that a service complains of."""
    return [f"{face.name}: {line}" for face in all_faces(config) for line in face.lines]
