"""`bulkhead images pull`."""

import argparse
import sys
from contextlib import nullcontext

from bulkhead.cli import keys
from bulkhead.cli.images import arguments, client, exits, login, transfer
from bulkhead.errors import BulkheadError
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Pull images from their registries, as the kubelet would: hosts.toml, mirrors and credentials are
those of the configuration. Layers that are here, or that another pull is fetching, are not fetched again. An
interrupted pull goes on where it was cut.

With --platform or --all-platforms other platforms are kept as well, to be pushed or exported; what this machine
cannot run is not unpacked, and the kubelet does not see it. Likewise an encrypted image without its key."""
_EXAMPLES = """  bulkhead images pull docker.io/library/busybox:1.37
  bulkhead images pull registry:5000/app:2 registry:5000/db:7
  bulkhead images pull --all-platforms docker.io/library/bash:latest
  bulkhead images pull --runtime-handler kata registry:5000/app:2
  bulkhead images pull --user robot --password-stdin registry.example/app:2 < password
  bulkhead images pull --key mykey.pem registry:5000/bash.enc:latest
  id=$(bulkhead images pull --quiet busybox)        # prints the id alone"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "pull", run, "pull images from their registries", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=arguments.NAME)
    arguments.platforms(parser, "keep")
    arguments.handler(parser)
    keys.add(parser)
    login.add(parser)
    arguments.output(parser, quiet="print the images' ids only", events=True)


def run(options: argparse.Namespace) -> int:
    """Pull one image after another; the status of the first that failed, after trying all."""
    worst = 0
    asked = [(image, login.credentials(options, image)) for image in options.images]
    lent = keys.lent(client.layer_socket_of(options), options.key) if options.key else nullcontext("")
    with lent as grant, client.connected(options) as connection:
        for image, auth in asked:
            request = pb.PullRequest(
                image=image,
                auth=auth,
                platforms=arguments.selected(options),
                no_unpack=options.no_unpack,
                grant=grant,
                runtime_handler=options.runtime_handler,
            )
            try:
                _one(options, connection, request)
            except BulkheadError as error:
                if len(asked) == 1:
                    raise
                sys.stderr.write(f"bulkhead images pull: {error}\n")
                worst = worst or exits.status(error)
    return worst


def _one(options: argparse.Namespace, connection: client.Client, request: pb.PullRequest) -> None:
    shown = transfer.display(options, "pulling")
    result = transfer.follow(connection.stream(connection.stub.Pull, request), shown)
    image = result.images[0]
    line = image.id or result.digest if options.quiet else f"{result.names[0]}: {result.digest}"
    transfer.finish(options, result, line)
