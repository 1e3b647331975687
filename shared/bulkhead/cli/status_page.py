"""The compartments over HTTP, for dashboards: `bulkhead status --listen HOST:PORT`.

A process of its own, run where somebody wants it, so that its framework (25 MB) is in none of the services.
GET /status is the whole stack, GET /status/SERVICE one service (404 if there is none), both 503 while not all that
was asked for is ready; GET /openapi.json describes them.
"""

from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

from bulkhead import __version__
from bulkhead.config.model import Config
from bulkhead.errors import InvalidArgument
from bulkhead.supervisor import faces, pods
from bulkhead.supervisor.faces import Face
from bulkhead.supervisor.roster import START


class Service(BaseModel):
    """One service: `ready`, `not ready` or `down`, and what it complains of."""

    state: str
    lines: list[str]


class Stack(BaseModel):
    """Every service, and how many shims live."""

    services: dict[str, Service]
    shims: int


def application(config: Config) -> FastAPI:
    """Return the application that shows one stack."""
    # Its page of documentation would load scripts from elsewhere; the description itself is enough.
    app = FastAPI(title="Bulkhead", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/status")
    def whole(response: Response) -> Stack:
        """Every service at a glance."""
        found = faces.all_faces(config)
        response.status_code = _code(found)
        return Stack(services={face.name: _service(face) for face in found}, shims=len(pods.live_shims(config)))

    @app.get("/status/{name}")
    def one(name: str, response: Response) -> Service:
        """One service."""
        if name not in START:
            raise HTTPException(404, f"no service {name!r}; there are {', '.join(START)}")
        face = faces.look(config, name)
        response.status_code = _code([face])
        return _service(face)

    return app


def serve(config: Config, listen: str) -> None:
    """Serve until interrupted on "HOST:PORT", or on a port of 127.0.0.1."""
    host, _, port = listen.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise InvalidArgument(f"--listen is {listen!r}, expected HOST:PORT or a port")
    settings: dict[str, Any] = {"host": host.strip("[]") or "127.0.0.1", "port": int(port)}
    uvicorn.run(application(config), log_level="warning", server_header=False, **settings)


def _service(face: Face) -> Service:
    return Service(state=face.state, lines=list(face.lines))


def _code(found: list[Face]) -> int:
    return 200 if all(face.state == "ready" for face in found) else 503
