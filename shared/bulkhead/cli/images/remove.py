"""`bulkhead images rm`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, exits, progress
from bulkhead.errors import BulkheadError, NotFound
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Remove names, and with its last tag the image; by an id the image with all its names. An image that
containers use or that is pinned stays unless --force is given; containers keep their files in any case. Layers and
blobs that nothing needs any more are removed in the background."""
_EXAMPLES = """  bulkhead images rm registry:5000/app:1 registry:5000/app:2
  bulkhead images rm $(bulkhead images ls --dangling --quiet)
  bulkhead images rm --force 3fba0c87fcc8            # though it has several names, or is in use"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "rm", run, "remove names and images", _DESCRIPTION, _EXAMPLES, aliases=("remove", "delete")
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument(
        "-f", "--force", action="store_true", help="also what is in use, pinned or named in many repositories"
    )
    parser.add_argument("--ignore-missing", action="store_true", help="what is not here is no failure")
    arguments.output(parser, quiet="print nothing")


def run(options: argparse.Namespace) -> int:
    """Remove one after another; the status of the first that failed, after trying all."""
    worst = 0
    done = pb.DeleteResponse()
    with client.connected(options) as connection:
        for image in options.images:
            try:
                answer = connection.call(connection.stub.Delete, pb.DeleteRequest(image=image, force=options.force))
            except BulkheadError as error:
                if options.ignore_missing and isinstance(error, NotFound):
                    continue
                sys.stderr.write(f"bulkhead images rm: {error}\n")
                worst = worst or exits.status(error)
                continue
            done.MergeFrom(answer)
            if not (options.quiet or options.json):
                sys.stdout.writelines(f"untagged: {name}\n" for name in answer.untagged)
                sys.stdout.writelines(f"deleted: {ident}\n" for ident in answer.deleted)
    if options.json:
        sys.stdout.write(f"{progress.as_json(done, indent=2)}\n")
    return worst
