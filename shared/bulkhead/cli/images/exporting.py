"""`bulkhead images export`."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bulkhead.cli import output
from bulkhead.cli.images import arguments, client, exits, layout, progress
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, ResourceExhausted
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Write images into one archive: an OCI layout, which docker load, ctr and skopeo read as well, or with
--format docker-archive what docker save wrote before version 25. FILE may be - for standard output; with --directory it
becomes a directory. All blobs must be here: those discarded after unpacking are named. A file gets its name when it is
whole."""
_EXAMPLES = """  bulkhead images export images.tar busybox:1.37 registry:5000/app:2
  bulkhead images export - app:2 | ssh node bulkhead images import -
  bulkhead images export - app:2 | zstd > app.tar.zst
  bulkhead images export --directory ./layout app:2
  bulkhead images export --all-platforms mirror.tar docker.io/library/bash:latest
  bulkhead images export --format docker-archive app.tar app:2 && docker load -i app.tar
  bulkhead images save -o app.tar app:2              # as docker save has it"""
_FORMATS = {"oci": pb.ExportRequest.OCI, "docker-archive": pb.ExportRequest.DOCKER_ARCHIVE}


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "export", run, "write images into an archive", _DESCRIPTION, _EXAMPLES, aliases=("save",)
    )
    parser.usage = "%(prog)s [options] FILE IMAGE...\n       %(prog)s [options] -o FILE IMAGE..."
    parser.add_argument(
        "words", nargs="+", metavar="IMAGE", help=f"{arguments.HERE}; before the first one FILE, unless -o names it"
    )
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", help="where to, in place of the first argument")
    parser.add_argument("--format", choices=sorted(_FORMATS), default="oci", help="default: oci")
    parser.add_argument("--directory", action="store_true", help="FILE is a directory to be made, not a tar")
    arguments.platforms(parser, "export")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="show no progress, and print what was written as JSON")
    shown.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of bars, on a terminal too")


def run(options: argparse.Namespace) -> int:
    """Write the archive; one that is not complete does not get its name."""
    name, images = (options.file, options.words) if options.file else (options.words[0], options.words[1:])
    if not images:
        raise InvalidArgument(f"{name!r} is where to export to; expected images after it")
    if options.directory and (options.format != "oci" or name == "-"):
        raise InvalidArgument("--directory goes with the format oci and the name of a directory")
    if name == "-" and (options.json or sys.stdout.isatty()):
        what = "is for the archive, not for --json" if options.json else "is a terminal"
        raise InvalidArgument(f"standard output {what}; name a file, or send it somewhere")
    request = pb.ExportRequest(images=images, platforms=arguments.selected(options), format=_FORMATS[options.format])
    with client.connected(options) as connection:
        quiet = options.quiet or options.json
        shown = progress.open_display("exporting", quiet=quiet, events=False, plain=options.plain)
        size = _Size()
        try:
            pieces = size.of(_pieces(connection.stream(connection.stub.Export, request), shown))
            _write(options, Path(name), pieces)
        except OSError as error:
            return _failed(name, error)
        finally:
            shown.close()
    if options.json:
        sys.stdout.write(f"{json.dumps({'file': name, 'bytes': size.bytes, 'images': images})}\n")
    return 0


class _Size:
    """Counts what goes by."""

    def __init__(self) -> None:
        self.bytes = 0

    def of(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Pass pieces on."""
        for piece in pieces:
            self.bytes += len(piece)
            yield piece


def _pieces(answers: Iterator[pb.ExportResponse], shown: progress.Display) -> Iterator[bytes]:
    done = total = 0
    for answer in answers:
        total = answer.total or total
        done += len(answer.data)
        shown.bytes(done, total)
        if answer.data:
            yield answer.data


def _write(options: argparse.Namespace, path: Path, pieces: Iterator[bytes]) -> None:
    if str(path) == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    elif options.directory:
        layout.unpack(pieces, path)
    else:
        _file(path, pieces)


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


def _failed(name: str, error: OSError) -> int:
    """Raise what went wrong with a file as an error of ours; return the status for a reader that went away."""
    if name != "-":
        raise _error(name, error) from error
    output.discard()
    if isinstance(error, BrokenPipeError):
        sys.stderr.write("bulkhead images export: whoever read the archive went away before its end\n")
        return exits.PIPE
    raise _error("standard output", error) from error


def _error(name: str, error: OSError) -> BulkheadError:
    kind = ResourceExhausted if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else FailedPrecondition
    return kind(f"{name}: {error.strerror or error}")
