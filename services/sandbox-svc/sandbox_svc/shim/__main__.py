"""containerd-shim-bulkhead-v2: the shim as a stock containerd starts it (runtime io.containerd.bulkhead.v2)."""

import os
import sys

import bulkhead
from bulkhead.errors import BulkheadError, InvalidArgument
from bulkhead.proto.containerd.types_pb2 import RuntimeInfo, RuntimeVersion
from sandbox_svc.shim import start
from sandbox_svc.shim.cleanup import delete

NAME = "io.containerd.bulkhead.v2"


def info() -> bytes:
    """Return what `-info` answers: the name and version of this runtime."""
    return RuntimeInfo(name=NAME, version=RuntimeVersion(version=bulkhead.__version__)).SerializeToString()


def run(words: list[str]) -> bytes:
    """Do what the command line says and return what goes to standard output."""
    arguments = start.parse_arguments(words)
    if arguments.v:
        return f"containerd-shim-bulkhead-v2:\n  Version: {bulkhead.__version__}\n".encode()
    if arguments.info:
        return info()
    if not arguments.namespace:
        raise InvalidArgument("shim namespace cannot be empty")
    if arguments.action == "start":
        return start.start(arguments)
    if arguments.action == "delete":
        return delete(arguments.namespace, arguments.id, arguments.bundle or os.getcwd())
    raise InvalidArgument(f"action {arguments.action!r} is neither start nor delete")


def main() -> None:
    """Answer on standard output, or complain on standard error and exit with 1."""
    try:
        output = run(sys.argv[1:])
    except (BulkheadError, OSError, ValueError) as error:
        sys.exit(f"containerd-shim-bulkhead-v2: {error}")
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
