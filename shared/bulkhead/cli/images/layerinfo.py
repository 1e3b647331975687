"""`bulkhead images layerinfo`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, progress, text
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Show the layers of an image, which of them are encrypted, how, and for whom as far as that can be
seen: OpenPGP names its recipients by key id, other schemes keep them to themselves and show as [jwe] and the like."""
_EXAMPLES = """  bulkhead images layerinfo docker.io/library/bash:latest
  bulkhead images layerinfo --platform linux/amd64 bash.enc:latest"""
_HEADS = ("#", "DIGEST", "PLATFORM", "SIZE", "ENCRYPTION", "RECIPIENTS")


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "layerinfo", run, "show layers and their encryption", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="only this platform; may be repeated"
    )
    arguments.output(parser, quiet="print digests only")


def run(options: argparse.Namespace) -> int:
    """Print a line for each layer."""
    request = pb.LayerInfoRequest(image=options.image, platforms=options.platform)
    with client.connected(options) as connection:
        answer = connection.call(connection.stub.LayerInfo, request)
    if options.json:
        sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n")
    elif options.quiet:
        sys.stdout.writelines(f"{layer.digest}\n" for layer in answer.layers)
    else:
        rows = [_row(layer) for layer in answer.layers]
        sys.stdout.write(text.table(_HEADS, rows, right=_HEADS))
    return 0


def _row(layer: pb.LayerDescription) -> list[str]:
    recipients = ", ".join(layer.recipients)
    return [
        str(layer.index),
        layer.digest,
        layer.platform,
        str(layer.size),
        ",".join(layer.encryption),
        recipients,
    ]
