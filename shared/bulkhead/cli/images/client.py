"""The connection to image-svc: found by the configuration or a socket's path, its errors as ours."""

import argparse
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from bulkhead import config, paths, rpc
from bulkhead.errors import PermissionDenied, Unavailable, from_code
from bulkhead.launch.users import GROUP
from bulkhead.proto.images_pb2_grpc import ManagementStub
from bulkhead.sockets import is_live

SERVICE = "image-svc"
#: Seconds for a call that moves no image.
TIMEOUT = 120.0
#: Seconds that a restarting service gets.
_RESTART = 5.0


class Client:
    """Calls image-svc's Management service."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._channel = rpc.channel(str(socket))
        self.stub = ManagementStub(self._channel)

    def call(self, method: Callable[..., Any], request: Any, timeout: float = TIMEOUT) -> Any:
        """Make a call of one answer."""
        self._reachable()
        return rpc.call(method, request, service=f"image-svc ({self.socket})", timeout=timeout)

    def stream(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """Make a call of many answers and yield them; it ends with the caller's interest in it, without a deadline."""
        self._reachable()
        call = method(request, wait_for_ready=True, metadata=rpc.metadata())
        try:
            yield from call
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call):
                raise
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE and not rpc.answered(error):
                raise Unavailable(f"image-svc ({self.socket}) went away in the middle; try again") from error
            raise from_code(code.value[0], details) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _reachable(self) -> None:
        """Raise what explains it best if the socket is not there or not ours to use: grpc would try for ever."""
        try:
            found = os.stat(self.socket)
        except FileNotFoundError as error:
            text = f"{self.socket} is not there: is the stack up, and is this its configuration (--config, --socket)?"
            raise Unavailable(text) from error
        except PermissionError as error:
            raise PermissionDenied(f"{self.socket}: permission denied; {_WHO}") from error
        if not stat.S_ISSOCK(found.st_mode):
            raise Unavailable(f"{self.socket} is not a socket")
        if not os.access(self.socket, os.W_OK):
            raise PermissionDenied(f"{self.socket}: permission denied; {_WHO}")
        until = time.monotonic() + _RESTART
        while not is_live(str(self.socket)):
            if time.monotonic() > until:
                raise Unavailable(f"nobody answers at {self.socket}: is image-svc running?")
            time.sleep(0.1)


_WHO = f"root and the group {GROUP} may use it"


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Client]:
    """Yield a client of the stack that `--socket` or `--config` names."""
    made = Client(socket_of(options))
    try:
        yield made
    finally:
        made.close()


def socket_of(options: argparse.Namespace) -> Path:
    """Return image-svc's socket."""
    if options.socket:
        return Path(options.socket.removeprefix("unix://"))
    try:
        return paths.service_socket(config.load(options.config).state, SERVICE)
    except PermissionDenied as error:
        raise PermissionDenied(f"{error}; who may not read the configuration gives --socket") from error


def layer_socket_of(options: argparse.Namespace) -> Path:
    """Return the decryptor's socket for layers and keys, of the same stack."""
    return paths.layer_socket(socket_of(options).parent.parent)
