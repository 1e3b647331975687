"""`bulkhead images export`."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bulkhead.cli.images import arguments, client, layout, progress
from bulkhead.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Write images into one archive: an OCI layout, which docker load, ctr and skopeo read as well, or with
--format docker-archive what docker save wrote before version 25. FILE may be - for standard output; with --directory it
becomes a directory. All blobs must be here: those discarded after unpacking are named."""
_EXAMPLES = """  bulkhead images export images.tar busybox:1.37 registry:5000/app:2
  bulkhead images export - app:2 | ssh node bulkhead images import -
  bulkhead images export --directory ./layout app:2
  bulkhead images export --all-platforms mirror.tar docker.io/library/bash:latest
  bulkhead images export --format docker-archive app.tar app:2 && docker load -i app.tar"""
_FORMATS = {"oci": pb.ExportRequest.OCI, "docker-archive": pb.ExportRequest.DOCKER_ARCHIVE}


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "export", run, "write images into an archive", _DESCRIPTION, _EXAMPLES, aliases=("save",)
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--format", choices=sorted(_FORMATS), default="oci", help="default: oci")
    parser.add_argument("--directory", action="store_true", help="FILE is a directory to be made, not a tar")
    arguments.platforms(parser, "export")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of bars, on a terminal too")


def run(options: argparse.Namespace) -> int:
    """Write the archive; one that is not complete does not get its name."""
    if options.directory and (options.format != "oci" or options.file == "-"):
        raise InvalidArgument("--directory goes with the format oci and the name of a directory")
    if options.file == "-" and sys.stdout.isatty():
        raise InvalidArgument("standard output is a terminal; name a file, or send it somewhere")
    request = pb.ExportRequest(
        images=options.images, platforms=arguments.selected(options), format=_FORMATS[options.format]
    )
    with client.connected(options) as connection:
        shown = progress.open_display("exporting", quiet=options.quiet, events=False, plain=options.plain)
        try:
            pieces = _pieces(connection.stream(connection.stub.Export, request), shown)
            _write(options, pieces)
        except OSError as error:
            raise _failure(options.file, error) from error
        finally:
            shown.close()
    return 0


def _pieces(answers: Iterator[pb.ExportResponse], shown: progress.Display) -> Iterator[bytes]:
    done = total = 0
    for answer in answers:
        total = answer.total or total
        done += len(answer.data)
        shown.bytes(done, total)
        if answer.data:
            yield answer.data


def _write(options: argparse.Namespace, pieces: Iterator[bytes]) -> None:
    if options.file == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    elif options.directory:
        layout.unpack(pieces, Path(options.file))
    else:
        _file(Path(options.file), pieces)


def _file(path: Path, pieces: Iterator[bytes]) -> None:
    """Write a file under another name first, so that nobody takes a part for the whole."""
    if path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as file:
            file.writelines(pieces)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _failure(name: str, error: OSError) -> Exception:
    kind = ResourceExhausted if error.errno in (28, 122) else FailedPrecondition
    return kind(f"{name}: {error.strerror or error}")
