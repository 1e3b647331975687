"""stream-svc: exec, attach and port-forward sessions between clients and shims."""

import argparse
import asyncio
import logging
import resource
import signal
import ssl
import sys
from collections.abc import Sequence

from bulkhead import config as configuration
from bulkhead import log, metrics, paths, rpc
from bulkhead.config.model import Config
from bulkhead.errors import BulkheadError
from bulkhead.proto import streams_pb2_grpc
from stream_svc import address, tls
from stream_svc.server import Server
from stream_svc.session import Limits
from stream_svc.streams_service import StreamsService

NAME = "stream-svc"

logger = logging.getLogger("stream_svc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns 1, after one line of reason, if it cannot start."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    parser.add_argument(
        "--config", help="configuration file (default: /etc/bulkhead/config.toml if it exists, else built-in)"
    )
    options = parser.parse_args(arguments)
    try:
        config = configuration.load(options.config)
        log.setup("stream_svc", config.debug.level, config.debug.format)
        asyncio.run(serve(config))
    except BulkheadError as error:
        print(f"{NAME}: {error}", file=sys.stderr)  # noqa: T201 # logging may not stand yet
        return 1
    return 0


async def serve(config: Config) -> None:
    """Run the service until it is told to stop."""
    _raise_descriptor_limit()
    streaming = config.streaming
    socket_path = paths.service_socket(config.state, NAME)
    socket_path.parent.mkdir(parents=True, exist_ok=True)
    rpc.refuse_live(str(socket_path))
    listener = address.listen(
        streaming.stream_server_address, streaming.stream_server_port, socket_path.with_name("port")
    )
    base_url = address.base_url(
        streaming.stream_server_address, listener.getsockname()[1], tls=streaming.enable_tls_streaming
    )
    context = tls.context(streaming, base_url.partition("://")[2].rpartition(":")[0].strip("[]"))
    server = Server(
        config.state, Limits(streaming.stream_idle_timeout, config.runtime.drain_exec_sync_io_timeout), context
    )
    await server.start([listener])
    service = StreamsService(base_url, server.table)
    grpc_server = rpc.server(
        lambda made: streams_pb2_grpc.add_StreamsServicer_to_server(service, made), str(socket_path), 0o660
    )
    metrics.serve(NAME, server.not_ready, port=config.bulkhead.metrics_ports.get(NAME, -1))
    logger.info("serving", extra={"base_url": base_url, "socket": str(socket_path)})
    await _told_to_stop(config, context)
    logger.info("stopping", extra={"sessions": len(server.table.open)})
    grpc_server.stop(grace=1)
    await server.stop()


async def _told_to_stop(config: Config, context: ssl.SSLContext | None) -> None:
    """Wait for SIGTERM or SIGINT; SIGHUP loads the TLS key pair anew."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, config, context)
    await stop.wait()


def _reload(config: Config, context: ssl.SSLContext | None) -> None:
    if context is None:
        return
    try:
        tls.reload(context, config.streaming)
        logger.info("TLS key pair loaded anew")
    except BulkheadError as error:
        logger.error("%s; the old pair stays in use", error)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the hard limit allows: a session uses up to six."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
