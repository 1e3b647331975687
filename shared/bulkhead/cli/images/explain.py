"""`bulkhead images explain`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, exits, login, progress, text
from bulkhead.errors import from_code
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Say which hosts would be asked for an image, in which order and why: the file and line that names
each, its TLS settings, where its credentials come from (never what they are), and what it answers now. What to ask
first when a pull fails and nobody sees why. If the name does not resolve, the status is that of a pull of it."""
_EXAMPLES = """  bulkhead images explain docker.io/library/busybox
  bulkhead images explain --offline registry:5000/app:2     # ask nobody
  bulkhead images explain --push registry:5000/app:2"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(
        verbs, "explain", run, "say which hosts are asked for an image, and why", _DESCRIPTION, _EXAMPLES
    )
    parser.add_argument("image", metavar="IMAGE", help=arguments.NAME)
    parser.add_argument("--offline", action="store_true", help="do not ask the hosts")
    parser.add_argument("--push", action="store_true", help="explain a push")
    login.add(parser)
    arguments.output(parser)


def run(options: argparse.Namespace) -> int:
    """Print the hosts; 0 if the name resolves, or if nobody was asked, else the status that a pull would have."""
    auth = login.credentials(options, options.image)
    request = pb.ExplainRequest(image=options.image, auth=auth, offline=options.offline, push=options.push)
    with client.connected(options) as connection:
        answer = connection.call(connection.stub.Explain, request, timeout=300.0)
    sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n" if options.json else as_text(answer))
    return exits.status(from_code(answer.code, answer.error)) if answer.error else 0


def as_text(answer: pb.ExplainResponse) -> str:
    """Return one paragraph a host, and the result."""
    lines = [answer.reference]
    lines += [f"  {note}" for note in answer.notes]
    for number, host in enumerate(answer.hosts, 1):
        took = f" ({host.seconds:.2f} s)" if host.seconds else ""
        facts = [
            ("from", host.source),
            ("capabilities", ", ".join(host.capabilities)),
            ("tls", host.tls),
            ("credentials", host.credentials),
            ("headers", ", ".join(host.headers)),
            ("result", f"{host.result}{took}" if host.result else ""),
        ]
        lines.append(f"{number}. {host.url}")
        lines += [f"     {name + ':':14}{value}" for name, value in facts if value]
    if answer.digest:
        lines.append(f"resolves to {answer.digest} ({answer.media_type})")
    if answer.error:
        lines.append(f"does not resolve: {answer.error}")
    return "".join(f"{text.printable(line)}\n" for line in lines)
