"""`bulkhead run`: one container in a pod of its own, from the command line.

Only the name of the command is known to the other commands; gRPC is imported when it is run.
"""

import argparse

DESCRIPTION = """Run one container in a pod of its own and show what it writes; the exit status is the container's.
The image must be here (bulkhead images pull). An encrypted one takes a key of the node's or one of --key, which the
decryptor gets for this one container and forgets with it.

Interrupted, the container is stopped, within --stop-timeout seconds. Without --rm container and pod stay, stopped, for
crictl to show and remove; a kubelet on the node may remove what it does not know."""
EXAMPLES = """examples:
  bulkhead run --rm docker.io/library/busybox:1.37 test echo 'Hello World!'
  bulkhead run --rm --key mykey.pem localhost:5000/bash.enc:latest test echo 'Hello World!'
  bulkhead run --rm --tty busybox:1.37 shell sh
  bulkhead run --rm --env A=b --handler crun --net-host app:2 once /bin/job --now

exit status: the container's; 125 if it could not be run; 128 and the number of the signal that ended the run"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="run one container from an image that is here",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="a name, or an id")
    parser.add_argument("name", metavar="NAME", help="what the pod and the container are called")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD", help="default: what the image says")
    parser.add_argument("--rm", action="store_true", help="remove container and pod at the end")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="FILE",
        help="a private key for this container alone: FILE, FILE:pass=…, FILE:file=…, FILE:fd=…; may be repeated",
    )
    parser.add_argument("-t", "--tty", action="store_true", help="give the container this terminal")
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument(
        "-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="a variable; may be repeated"
    )
    parser.add_argument("--workdir", default="", metavar="DIRECTORY", help="the container's working directory")
    parser.add_argument("--entrypoint", default="", metavar="PROGRAM", help="in place of the image's")
    parser.add_argument("--handler", default="", metavar="NAME", help="the runtime handler, such as crun")
    parser.add_argument("--namespace", default="default", help="the pod's namespace, which key policies see")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="a label of the pod")
    parser.add_argument("--net-host", action="store_true", help="the host's network in place of one of the pod's own")
    parser.add_argument("--stop-timeout", type=int, default=10, metavar="SECONDS", help="when interrupted; default: 10")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the container and return its exit status."""
    from bulkhead.cli.run import session  # gRPC and its messages, of no use to other commands

    return session.run(options)
