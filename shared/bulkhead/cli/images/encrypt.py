"""`bulkhead images encrypt`."""

import argparse
import os
from contextlib import nullcontext

from bulkhead.cli import keys
from bulkhead.cli.images import arguments, client, recipients, transfer
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Make an encrypted image of another one that is here: the layers of the platforms asked for, each under
a key of its own that is wrapped for every recipient. Manifests of other platforms stay as they are. Layers that are
encrypted already are wrapped for the recipients as well, which takes a key that opens them, and root.

The result is kept as content, to be pushed or exported: a node with a key for it pulls it like any other."""
_EXAMPLES = """  openssl genrsa -out mykey.pem && openssl rsa -in mykey.pem -pubout -out mypubkey.pem
  bulkhead images encrypt --recipient jwe:mypubkey.pem --platform linux/amd64 bash:latest bash.enc:latest
  bulkhead images encrypt --recipient pkcs7:cert.pem --recipient pgp:me@example.com app:2 registry:5000/app:2-enc
  bulkhead images encrypt --recipient jwe:other.pem --key mykey.pem bash.enc:latest bash.enc:latest"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "encrypt", run, "make an encrypted image of another", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument("name", metavar="NAME", help="the name of the encrypted image")
    recipients.add(parser)
    choice(parser, "encrypt")
    keys.add(parser)
    arguments.output(parser, quiet="print the digest only", events=True)


def choice(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--platform` and `--layer`."""
    parser.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH",
        help=f"{what} this platform, or all; may be repeated; default: every platform that is here",
    )
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        type=int,
        metavar="NUMBER",
        help=f"{what} this layer, by its number in layerinfo, or from -1 for the topmost; may be repeated",
    )


def platforms(options: argparse.Namespace) -> pb.Platforms:
    """Return what `--platform` said."""
    if "all" in options.platform:
        return pb.Platforms(all=True)
    return pb.Platforms(names=options.platform)


def run(options: argparse.Namespace) -> int:
    """Encrypt, and print the name and digest of the result."""
    wanted = recipients.read(options)
    root = os.geteuid() == 0
    socket = client.layer_socket_of(options)
    # Without root's grant plain layers are encrypted all the same.
    with keys.lent(socket, options.key) if root or options.key else nullcontext("") as grant:
        request = pb.EncryptImageRequest(
            image=options.image,
            name=options.name,
            recipients=wanted,
            platforms=platforms(options),
            layers=options.layer,
            grant=grant,
        )
        with client.connected(options) as connection:
            shown = transfer.display(options, "encrypting")
            result = transfer.follow(connection.stream(connection.stub.Encrypt, request), shown)
    return transfer.finish(options, result, line(options, result))


def line(options: argparse.Namespace, result: pb.TransferResult) -> str:
    """Return what is printed of a new image."""
    return str(result.digest) if options.quiet else f"{result.names[0]}: {result.digest}"
