"""`bulkhead images import`."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from bulkhead.cli.images import arguments, client, layout, transfer
from bulkhead.errors import InvalidArgument, NotFound
from bulkhead.proto import images_pb2 as pb

#: Bytes of one message.
PIECE = 1 << 20

_DESCRIPTION = """Take images in from an archive: an OCI layout as a tar or a directory, or what docker save writes;
plain, or compressed with gzip, bzip2, xz or zstd; - is standard input. Every digest is checked before anything counts.

Without options this machine's platform is unpacked, and the images get the names that the archive gives them. Done
before the kubelet starts, this lets a node without a registry run pods of imagePullPolicy IfNotPresent or Never."""
_EXAMPLES = """  bulkhead images import images.tar
  bulkhead images import images.tar.xz
  skopeo copy docker://busybox oci-archive:busybox.tar:docker.io/library/busybox:latest
  docker save app:2 | gzip | ssh node bulkhead images import -
  bulkhead images import --name registry:5000/app:2 ./layout/
  bulkhead images import --all-platforms --no-unpack mirror.tar"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "import", run, "take images in from an archive", _DESCRIPTION, _EXAMPLES, aliases=("load",)
    )
    parser.add_argument("archive", nargs="?", metavar="ARCHIVE", help="a file, a directory, or - for standard input")
    parser.add_argument("-i", "--input", metavar="ARCHIVE", help="the same, as docker load has it")
    parser.add_argument(
        "--name", action="append", default=[], metavar="NAME", help="a name for the one image in it; may be repeated"
    )
    parser.add_argument(
        "--base-name", default="", metavar="REPOSITORY", help="what tags without a repository belong to"
    )
    arguments.platforms(parser, "keep")
    arguments.handler(parser)
    arguments.output(parser, quiet="print the images' ids only", events=True)


def run(options: argparse.Namespace) -> int:
    """Send the archive and print what came in."""
    asked = pb.ImportOptions(
        names=options.name,
        base_name=options.base_name,
        platforms=arguments.selected(options),
        no_unpack=options.no_unpack,
        runtime_handler=options.runtime_handler,
    )
    if bool(options.archive) is bool(options.input):
        raise InvalidArgument("expected one archive: a file, a directory, or - for standard input")
    with client.connected(options) as connection:
        source, total = _open(options.archive or options.input)
        shown = transfer.display(options, "importing")
        requests = _requests(asked, source, lambda done: shown.bytes(done, total))
        result = transfer.follow(connection.stream(connection.stub.Import, requests), shown)
    ids = [image.id or image.target_digest for image in result.images]
    return transfer.finish(options, result, "\n".join(ids if options.quiet else result.names))


def _requests(
    asked: pb.ImportOptions, source: Iterator[bytes], told: Callable[[int], None]
) -> Iterator[pb.ImportRequest]:
    yield pb.ImportRequest(options=asked)
    done = 0
    for piece in source:
        yield pb.ImportRequest(data=piece)
        done += len(piece)
        told(done)


def _open(archive: str) -> tuple[Iterator[bytes], int]:
    """Return the archive's bytes and how many they are, 0 if that is not known."""
    if archive == "-":
        if sys.stdin.isatty():
            raise InvalidArgument("standard input is a terminal; expected an archive on it")
        # Past Python's buffer: gRPC's thread may still wait for more of it when the command has come to its end.
        return _pieces(getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)), 0
    path = Path(archive)
    try:
        if path.is_dir():
            return layout.tar(path)
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise NotFound(f"{archive}: {error.strerror}") from error
    return _pieces(file), os.fstat(file.fileno()).st_size


def _pieces(file: io.RawIOBase | BinaryIO) -> Iterator[bytes]:
    """Yield what is in a file, in pieces of one size: a pipe gives less at a time."""
    with file:
        while piece := b"".join(_some(file)):
            yield piece


def _some(file: io.RawIOBase | BinaryIO) -> Iterator[bytes]:
    left = PIECE
    while left and (read := file.read(left)):
        left -= len(read)
        yield read
