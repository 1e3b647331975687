"""One upgraded connection from its first byte to its last: transport, ticket and work put together."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from bulkhead.errors import BulkheadError
from stream_svc import websocket
from stream_svc.command import Command
from stream_svc.command_streams import CHANNEL_COUNT, from_websocket, gather, refuse_further
from stream_svc.multiplexer import Multiplexer
from stream_svc.outcome import Outcome
from stream_svc.portforward import PortForward
from stream_svc.shim import Session as ShimSession
from stream_svc.spdy_multiplexer import SpdyMultiplexer
from stream_svc.upgrade import Upgrade
from stream_svc.websocket_multiplexer import WebSocketMultiplexer
from stream_svc.wire import TunnelWire, Wire

logger = logging.getLogger(__name__)

#: Seconds that a client gets to take the reason why its session is being ended.
_REPORT_LIMIT = 1.0


@dataclass(frozen=True)
class Limits:
    """Seconds: without a byte in either direction (0: for ever), and without output after an exit."""

    idle: float
    drain: float


class Session:
    """One client, one ticket."""

    def __init__(self, upgrade: Upgrade, shim: ShimSession, wire: Wire, limits: Limits) -> None:
        self._upgrade, self._shim, self._limits = upgrade, shim, limits
        self._command: Command | None = None
        self._multiplexer: Multiplexer
        if upgrade.transport == "websocket":
            count = 2 * len(shim.ticket.ports) if upgrade.kind == "port_forward" else CHANNEL_COUNT
            codec = websocket.Channels(base64=upgrade.base64, close_signal=upgrade.version >= 5)
            self._multiplexer = WebSocketMultiplexer(wire, count, codec)
        else:
            self._multiplexer = SpdyMultiplexer(TunnelWire(wire) if upgrade.transport == "tunnel" else wire)

    def count(self) -> tuple[int, int]:
        """Return the bytes of payload from and to the client so far."""
        return self._multiplexer.received, self._multiplexer.sent

    async def run(self, stop: asyncio.Event) -> str:
        """Serve until the work is done, the client hangs up, nothing moves any more or `stop` is set.

        Returns the outcome: ok, exit, error, hangup, idle or stopped. The shim's session is hung up in every case
        before the client is waited for.
        """
        reading = asyncio.create_task(self._multiplexer.run(), name="read")
        work = asyncio.create_task(self._work(), name="work")
        ends = {
            work: "",
            asyncio.create_task(self._multiplexer.closed.wait()): "hangup",
            asyncio.create_task(self._idle()): "idle",
            asyncio.create_task(stop.wait()): "stopped",
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            outcome = await self._result(work) if work in done else ends[done.pop()]
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            self._shim.close()
            if outcome in ("idle", "stopped"):
                await self._explain(outcome)
            await self._multiplexer.close()
            return outcome
        finally:
            for task in (reading, *ends):
                task.cancel()
            await asyncio.gather(reading, *ends, return_exceptions=True)
            self._shim.close()

    async def _work(self) -> str:
        multiplexer = self._multiplexer
        if self._upgrade.kind == "port_forward":
            forward = PortForward(self._shim)
            if isinstance(multiplexer, WebSocketMultiplexer):
                await forward.over_websocket(multiplexer)
            elif isinstance(multiplexer, SpdyMultiplexer):
                await forward.over_spdy(multiplexer)
            return "ok"
        if isinstance(multiplexer, WebSocketMultiplexer):
            streams = await from_websocket(multiplexer, self._shim.ticket)
            return await self._run_command(Command(self._shim, streams, self._upgrade.version, self._limits.drain))
        assert isinstance(multiplexer, SpdyMultiplexer)
        streams = await gather(multiplexer, self._shim.ticket, self._upgrade.version)
        refusing = asyncio.create_task(refuse_further(multiplexer))
        try:
            return await self._run_command(Command(self._shim, streams, self._upgrade.version, self._limits.drain))
        finally:
            refusing.cancel()

    async def _run_command(self, command: Command) -> str:
        self._command = command
        return (await command.run()).label

    async def _result(self, work: "asyncio.Task[str]") -> str:
        try:
            return work.result()
        except ConnectionError:
            return "hangup"
        except (BulkheadError, OSError) as error:
            logger.warning("%s session failed: %s", self._upgrade.kind, error)
        except Exception:
            logger.exception("%s session failed", self._upgrade.kind)
            await self._report("internal error in stream-svc")
        return "error"

    async def _explain(self, outcome: str) -> None:
        if isinstance(self._multiplexer, WebSocketMultiplexer):
            self._multiplexer.code = websocket.GOING_AWAY
        await self._report(
            "stream-svc is stopping"
            if outcome == "stopped"
            else f"nothing was sent or received for {self._limits.idle:g} s (stream_idle_timeout)"
        )

    async def _report(self, reason: str) -> None:
        if self._command is not None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(self._command.report(Outcome(error=reason)), _REPORT_LIMIT)

    async def _idle(self) -> None:
        """Return once nothing has moved for the idle limit."""
        while self._limits.idle > 0:
            left = self._multiplexer.activity + self._limits.idle - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left)
        await asyncio.Event().wait()
