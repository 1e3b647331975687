"""`bulkhead images watch`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, exits, progress
from bulkhead.errors import InvalidArgument
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Show every pull that is under way, the kubelet's included, until interrupted."""
_EXAMPLES = """  bulkhead images watch
  bulkhead images watch --json | jq -c '.pulls[] | {image, stage}'
  bulkhead images watch --once --json                # what is under way now"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "watch", run, "show the pulls that are under way", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", nargs="?", default="", metavar="IMAGE", help="only pulls of this image")
    parser.add_argument("--interval", type=float, default=0.5, metavar="SECONDS", help="0.1 to 60; default: 0.5")
    parser.add_argument("--once", action="store_true", help="show what is under way and end")
    arguments.output(parser, events=True)


def run(options: argparse.Namespace) -> int:
    """Show pulls until interrupted."""
    if not 0.1 <= options.interval <= 60:
        raise InvalidArgument(f"--interval is {options.interval:g}, expected 0.1 to 60 seconds")
    request = pb.WatchPullsRequest(image=options.image, interval_ms=round(options.interval * 1000))
    with client.connected(options) as connection:
        shown = progress.open_display("pulling", quiet=False, events=False, plain=options.plain or options.json)
        try:
            for answer in connection.stream(connection.stub.WatchPulls, request):
                if options.json:
                    print(progress.as_json(answer), flush=True)  # noqa: T201 # the command's output
                for transfer in () if options.json else answer.pulls:
                    shown.show(transfer)
                if options.once:
                    if not (answer.pulls or options.json):
                        sys.stderr.write("no pull is under way\n")
                    break
        except KeyboardInterrupt:  # how it is meant to end
            return exits.INTERRUPTED
        finally:
            shown.close()
    return 0
