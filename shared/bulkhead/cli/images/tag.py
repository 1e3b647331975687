"""`bulkhead images tag`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, progress
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Give an image further names. A name that another image has moves to this one, unless --keep-existing
is given; the other image stays under its digest."""
_EXAMPLES = """  bulkhead images tag busybox:1.37 registry:5000/busybox:1.37 registry:5000/busybox:latest
  bulkhead images tag 3fba0c87fcc8 app:tested"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "tag", run, "give an image further names", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument("names", nargs="+", metavar="NAME", help="new names; without a tag: latest")
    parser.add_argument("--keep-existing", action="store_true", help="fail if another image has one of the names")
    arguments.output(parser, quiet="print nothing")


def run(options: argparse.Namespace) -> int:
    """Give the names and print their complete forms."""
    request = pb.TagRequest(image=options.image, names=options.names, keep_existing=options.keep_existing)
    with client.connected(options) as connection:
        answer = connection.call(connection.stub.Tag, request)
    if options.json:
        sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n")
    elif not options.quiet:
        sys.stdout.writelines(f"{name}\n" for name in answer.names)
    return 0
