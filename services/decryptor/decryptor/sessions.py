"""The layer socket: one connection is one piece of work, in a thread of its own (keys.proto says what is spoken)."""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence

from bulkhead import layers, seqpacket
from bulkhead.errors import BulkheadError, Internal, InvalidArgument, PermissionDenied, ResourceExhausted
from bulkhead.proto import keys_pb2
from bulkhead.rpc import TEXT_LIMIT
from decryptor import grants, stream
from decryptor.audit import LAYERS
from decryptor.desk import Desk
from decryptor.unwrap import Refused

logger = logging.getLogger(__name__)

#: Connections at one time: 2 MiB each while a layer runs.
CONNECTIONS = 128
#: Connections at one time of users that may not call: enough to tell them so.
STRANGERS = 8
#: Seconds a caller has to say what it wants, and to take an answer.
_PATIENCE = 10.0
#: Seconds that the request of a caller who is turned away is waited for.
_GLANCE = 0.1


class Sessions:
    """Serves the socket to root and to the users named."""

    def __init__(self, path: str, desk: Desk, uids: Sequence[int]) -> None:
        self._desk, self._uids = desk, frozenset(uids)
        self._room, self._strangers = threading.Semaphore(CONNECTIONS), threading.Semaphore(STRANGERS)
        self._listener = seqpacket.listen(path, 0o660)
        threading.Thread(target=self._accept, name="layers", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; what runs goes on until the process ends."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # Others of the callers' group may connect, too, and keep silent; they take no room from who is served.
            room = self._room if self._may_call(connection) else self._strangers
            if room.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(connection, room), name="layer", daemon=True).start()
                continue
            with connection:
                if room is self._room:
                    _turn_away(connection)

    def _may_call(self, connection: socket.socket) -> bool:
        _, uid, _ = seqpacket.peer(connection)
        return uid == 0 or uid in self._uids

    def _serve(self, connection: socket.socket, room: threading.Semaphore) -> None:
        try:
            with connection:
                self._converse(connection)
        except Exception:
            logger.exception("a connection to the layer socket failed")
        finally:
            room.release()

    def _converse(self, connection: socket.socket) -> None:
        _, uid, _ = seqpacket.peer(connection)
        connection.settimeout(_PATIENCE)
        fds: list[int] = []
        try:
            # Read from anybody: who is hung up on while sending never learns why.
            message, fds = seqpacket.receive(connection)
            if not self._may_call(connection):
                raise PermissionDenied(f"user {uid} may not hand layers to the decryptor")
            if message is not None:
                self._work(connection, message, fds, by_root=uid == 0)
        except BulkheadError as error:
            _answer_error(connection, error)
        except OSError as error:
            _answer_error(connection, InvalidArgument(f"layer request: {error.strerror or error}"))
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _work(self, connection: socket.socket, message: dict[str, object], fds: list[int], *, by_root: bool) -> None:
        verbs: dict[str, Callable[[], None]] = {
            "decrypt": lambda: self._decrypt(_ends(connection, message["decrypt"], fds), fds),
            "encrypt": lambda: self._encrypt(_ends(connection, message["encrypt"], fds), fds, by_root=by_root),
            "recipients": lambda: self._recipients(connection, fds, by_root=by_root),
            "grant": lambda: self._grant(connection, message["grant"], fds, by_root=by_root),
        }
        if len(message) != 1 or (verb := next(iter(message))) not in verbs:
            raise InvalidArgument(f"layer request {sorted(message)!a}, expected one of {', '.join(verbs)}")
        code = "INTERNAL"
        try:
            verbs[verb]()
            code = "OK"
        except BulkheadError as error:
            code = error.name
            if not isinstance(error, Refused):  # which the audit has
                logger.warning("%s: %s", verb, error)
            raise
        except OSError:
            code = "INVALID_ARGUMENT"
            raise
        except Exception as error:
            logger.exception("%s failed", verb)
            raise Internal(f"{verb} failed inside the decryptor: {type(error).__name__}") from None
        finally:
            LAYERS.labels(verb, code).inc()

    def _decrypt(self, ends: stream.Ends, fds: list[int]) -> None:
        request = layers.load(fds[0], keys_pb2.DecryptRequest)
        result = self._desk.decrypt(request, ends, lambda: seqpacket.send(ends.control, {"started": {}}))
        _finish(ends.control, fds, layers.dump(result))

    def _encrypt(self, ends: stream.Ends, fds: list[int], *, by_root: bool) -> None:
        request = layers.load(fds[0], keys_pb2.EncryptRequest)
        result = self._desk.encrypt(
            request, ends, lambda: seqpacket.send(ends.control, {"started": {}}), by_root=by_root
        )
        _finish(ends.control, fds, layers.dump(result))

    def _recipients(self, connection: socket.socket, fds: list[int], *, by_root: bool) -> None:
        if len(fds) != 1:
            raise InvalidArgument(f"recipients: {len(fds)} descriptors, expected the request's")
        request = layers.load(fds[0], keys_pb2.RecipientsRequest)
        _finish(connection, fds, layers.dump(self._desk.add_recipients(request, by_root=by_root)))

    def _grant(self, connection: socket.socket, order: object, fds: list[int], *, by_root: bool) -> None:
        if not by_root:
            raise PermissionDenied("only root grants keys")
        ring = grants.read(order.get("keys") if isinstance(order, dict) else None, fds)
        while fds:
            os.close(fds.pop())
        keys = [
            {"file": each.file, "kind": each.key.kind, "fingerprint": each.key.fingerprint, "error": each.key.error}
            for each in ring.entries
        ]
        with self._desk.grants.lend(ring) as ident:
            logger.info("keys granted for one use: %s", ring.describe())
            seqpacket.send(connection, {"granted": {"id": ident, "keys": keys}})
            # For as long as the giver holds the connection; whatever it says ends the grant, too.
            connection.settimeout(None)
            with contextlib.suppress(OSError):
                connection.recv(1)


def _ends(connection: socket.socket, order: object, fds: list[int]) -> stream.Ends:
    if len(fds) != 3:
        raise InvalidArgument(f"layer request with {len(fds)} descriptors, expected request, source and sink")
    alive = order.get(layers.ALIVE, 0.0) if isinstance(order, dict) else None
    if isinstance(alive, bool) or not isinstance(alive, int | float) or not _grants(alive):
        bounds = f"{layers.OFTEN:g} to {layers.SELDOM:g} seconds, or 0"
        raise InvalidArgument(f"layer request: {layers.ALIVE} is to be {bounds}")
    return stream.Ends(fds[1], fds[2], connection, float(alive))


def _grants(alive: float) -> bool:
    return alive == 0 or layers.OFTEN <= alive <= layers.SELDOM


def _finish(connection: socket.socket, fds: list[int], result: int) -> None:
    """Close the sink, so that its reader comes to the end, and say that all is well."""
    fds.append(result)
    for fd in fds[1:-1]:
        os.close(fd)
    del fds[1:-1]
    seqpacket.send(connection, {"done": {}}, (result,))


def _turn_away(connection: socket.socket) -> None:
    """Say that there is no room; a request that lies unread would have the caller see a reset in place of that."""
    connection.settimeout(_GLANCE)
    with contextlib.suppress(OSError, InvalidArgument):
        for fd in seqpacket.receive(connection)[1]:
            os.close(fd)
    _answer_error(connection, ResourceExhausted(f"{CONNECTIONS} layers are being worked on"))


def _answer_error(connection: socket.socket, error: BulkheadError) -> None:
    with contextlib.suppress(OSError):  # a caller that hung up wants no answer
        seqpacket.send(connection, {"error": {"code": error.code, "message": str(error)[:TEXT_LIMIT]}})
