"""`bulkhead images decrypt`."""

import argparse

from bulkhead.cli import keys
from bulkhead.cli.images import arguments, client, encrypt, transfer
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Make a plain image of an encrypted one that is here, with the node's keys and those of --key. Only
root may. Every layer is checked against its MAC and the digest that was sealed with its key before it counts."""
_EXAMPLES = """  bulkhead images decrypt --key mykey.pem bash.enc:latest bash.plain:latest
  bulkhead images decrypt --key mykey.pem:file=password --platform linux/arm64 app:2-enc app:2
  bulkhead images decrypt --key key.pem --key cert.pem app:pkcs7 app:plain"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "decrypt", run, "make a plain image of an encrypted one", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("image", metavar="IMAGE", help=arguments.HERE)
    parser.add_argument("name", metavar="NAME", help="the name of the plain image")
    encrypt.choice(parser, "decrypt")
    keys.add(parser)
    arguments.output(parser, quiet="print the digest only", events=True)


def run(options: argparse.Namespace) -> int:
    """Decrypt, and print the name and digest of the result."""
    with keys.lent(client.layer_socket_of(options), options.key) as grant, client.connected(options) as connection:
        request = pb.DecryptImageRequest(
            image=options.image,
            name=options.name,
            platforms=encrypt.platforms(options),
            layers=options.layer,
            grant=grant,
        )
        shown = transfer.display(options, "decrypting")
        result = transfer.follow(connection.stream(connection.stub.Decrypt, request), shown)
    return transfer.finish(options, result, encrypt.line(options, result))
