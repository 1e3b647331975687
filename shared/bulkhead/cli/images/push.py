"""`bulkhead images push`."""

import argparse

from bulkhead.cli.images import arguments, client, login, transfer
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Push an image to the registry that its name stands for, or to the name given as TARGET. Blobs that are
there already, also in another repository of that registry, are not sent again. An image that is here with all its
platforms is pushed with all of them; of one that is not, this machine's platform is pushed, and said so."""
_EXAMPLES = """  bulkhead images tag busybox:1.37 registry:5000/busybox:1.37
  bulkhead images push registry:5000/busybox:1.37
  bulkhead images push busybox:1.37 registry:5000/mirror/busybox:1.37
  bulkhead images push --platform linux/arm64 --user robot --password-stdin registry.example/app:2 < password"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "push", run, "push an image to its registry", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument("target", nargs="?", default="", metavar="TARGET", help="the name to push it under")
    arguments.platforms(parser, "push")
    login.add(parser)
    arguments.output(parser, quiet="print the digest only", events=True)


def run(options: argparse.Namespace) -> int:
    """Push the image and print the digest that its name stands for now."""
    auth = login.credentials(options, options.target or options.image)
    request = pb.PushRequest(
        image=options.image, target=options.target, auth=auth, platforms=arguments.selected(options)
    )
    with client.connected(options) as connection:
        shown = transfer.display(options, "pushing")
        result = transfer.follow(connection.stream(connection.stub.Push, request), shown)
    line = result.digest if options.quiet else f"{result.names[0]}: {result.digest}"
    return transfer.finish(options, result, line)
