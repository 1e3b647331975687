"""`bulkhead images`: images by hand.

Only the name of the command is known to the other commands; what it needs (gRPC, and rich on a terminal) is imported
when it is run.
"""

import argparse

DESCRIPTION = "Pull, push, look at, import, export and clean up the images of a node."


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", *, chosen: bool) -> None:
    """Add the command, with all its verbs if it is the one that was chosen."""
    parser = commands.add_parser(
        "images",
        aliases=["image"],
        help="pull, push, import, export and clean up images",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if chosen:
        from bulkhead.cli.images import verbs  # gRPC and its messages, of no use to other commands

        verbs.fill(parser)
