"""Following a transfer to its end."""

import argparse
import sys
from collections.abc import Iterable

from bulkhead.cli.images import progress, text
from bulkhead.cli.images.progress import Display
from bulkhead.errors import Unavailable
from bulkhead.proto import images_pb2 as pb


def display(options: argparse.Namespace, verb: str) -> Display:
    """Return the display that the options ask for."""
    return progress.open_display(verb, quiet=options.quiet, events=options.json, plain=options.plain)


def follow(events: Iterable[pb.TransferEvent], shown: Display) -> pb.TransferResult:
    """Show the events of a transfer and return its result; whatever happens, the display comes to its end."""
    try:
        for event in events:
            if event.HasField("result"):
                return event.result
            shown.show(event.progress)
    finally:
        shown.close()
    raise Unavailable("image-svc ended the transfer without a result")


def finish(options: argparse.Namespace, result: pb.TransferResult, line: str) -> int:
    """Print the result: a line for people, names alone with `--quiet`, the last event with `--json`."""
    for warning in result.warnings:
        sys.stderr.write(f"warning: {text.printable(warning)}\n")
    if options.json:
        sys.stdout.write(f"{progress.as_json(pb.TransferEvent(result=result))}\n")
    else:
        sys.stdout.writelines(f"{text.printable(each)}\n" for each in line.splitlines())
    return 0
