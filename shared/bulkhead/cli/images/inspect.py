"""`bulkhead images inspect`."""

import argparse
import json
import sys
from typing import Any

from bulkhead.cli.images import arguments, client, exits, progress
from bulkhead.errors import BulkheadError
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Print what is known of images as a JSON list: names, digests, sizes, users, and the configuration,
manifest and index as they were pulled."""
_EXAMPLES = """  bulkhead images inspect busybox
  bulkhead images inspect busybox | jq -r '.[0].config.config.Cmd[]'
  bulkhead images inspect --platform linux/arm64 registry:5000/app:2"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "inspect", run, "print what is known of images", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument("--platform", default="", metavar="OS/ARCH", help="default: this machine's own")
    parser.add_argument("--json", action="store_true", help="print JSON, as without it")


def run(options: argparse.Namespace) -> int:
    """Print the list of those that are here; the status of the first that is not."""
    worst = 0
    answers: list[pb.InspectResponse] = []
    with client.connected(options) as connection:
        for image in options.images:
            request = pb.InspectRequest(image=image, platform=options.platform)
            try:
                answers.append(connection.call(connection.stub.Inspect, request))
            except BulkheadError as error:
                sys.stderr.write(f"bulkhead images inspect: {error}\n")
                worst = worst or exits.status(error)
    sys.stdout.write(f"{json.dumps([as_document(answer) for answer in answers], indent=2)}\n")
    return worst


def as_document(answer: pb.InspectResponse) -> dict[str, Any]:
    """Return one image as a JSON object."""
    return {
        **progress.document(answer.image),
        "layers": [progress.document(layer) for layer in answer.layers],
        "config": json.loads(answer.config_json),
        "manifest": json.loads(answer.manifest_json),
        "index": json.loads(answer.index_json) if answer.index_json else None,
    }
