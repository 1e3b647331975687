"""`bulkhead images usage`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, listing, progress, text
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Show what images take on disk: the content store (manifests and layers as registries store them), the
unpacked layers, the containers' writable layers, downloads that were interrupted; and for each image what it shares
with others and what would go with it."""
_EXAMPLES = """  bulkhead images usage
  bulkhead images usage --json | jq .reclaimable"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "usage", run, "show what images take on disk", _DESCRIPTION, _EXAMPLES, aliases=("du", "df")
    )
    arguments.output(parser)


def run(options: argparse.Namespace) -> int:
    """Print two tables."""
    with client.connected(options) as connection:
        answer = connection.call(connection.stub.Usage, pb.UsageRequest())
    sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n" if options.json else as_tables(answer))
    return 0


def as_tables(answer: pb.UsageResponse) -> str:
    """Return what kinds of things take, and then each image, the largest first."""
    kinds = (
        ("blobs", answer.blobs),
        ("unpacked layers", answer.layers),
        ("containers", answer.containers),
        ("partial downloads", answer.partial),
    )
    rows = [[name, str(kind.count), text.size(kind.bytes)] for name, kind in kinds]
    first = text.table(("KIND", "COUNT", "SIZE"), rows, right=("COUNT", "SIZE"))
    images = sorted(answer.images, key=lambda each: -(each.shared + each.unique))
    lines = [
        [
            _name(each.image),
            text.size(each.shared + each.unique),
            text.size(each.shared),
            text.size(each.unique),
            str(len(each.image.used_by)),
            listing.state(each.image),
        ]
        for each in images
    ]
    heads = ("IMAGE", "SIZE", "SHARED", "UNIQUE", "CONTAINERS", "STATE")
    second = text.table(heads, lines, right=("SIZE", "SHARED", "UNIQUE", "CONTAINERS"))
    free = f"{text.size(answer.filesystem_free)} of {text.size(answer.filesystem_size)} free"
    summary = f"{answer.root}: {free}; {text.size(answer.reclaimable)} reclaimable (bulkhead images prune --all)\n"
    return f"{first}\n{second}\n{summary}" if lines else f"{first}\n{summary}"


def _name(image: pb.ImageSummary) -> str:
    names = [*image.repo_tags, *image.repo_digests, text.short(image.id)]
    return names[0]
