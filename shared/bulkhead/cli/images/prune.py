"""`bulkhead images prune`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, exits, progress, text
from bulkhead.errors import InvalidArgument
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Remove images that no container uses and that are not pinned: those without a tag, with --all every
one. It shows them and asks first; where there is no terminal to ask on it removes nothing unless --force is given."""
_EXAMPLES = """  bulkhead images prune --dry-run
  bulkhead images prune --all --filter until=7d --force
  bulkhead images prune --all --filter 'reference=!registry:5000/*'"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "prune", run, "remove unused images", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("-a", "--all", action="store_true", help="also images with a tag")
    arguments.filters(parser, short=False)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would go")
    parser.add_argument("-f", "--force", "-y", "--yes", action="store_true", help="do not ask")
    arguments.output(parser, quiet="print ids only")


def run(options: argparse.Namespace) -> int:
    """Remove, and print what went."""
    request = pb.PruneRequest(all=options.all, filters=options.filter, dry_run=options.dry_run)
    asks = not (options.dry_run or options.force)
    if asks and not sys.stdin.isatty():
        raise InvalidArgument(
            "standard input is no terminal to ask on: --force removes without asking, --dry-run looks"
        )
    with client.connected(options) as connection:
        if asks:
            request.dry_run = True
            planned = connection.call(connection.stub.Prune, request)
            if planned.images and not _confirmed(planned):
                sys.stderr.write("nothing was removed\n")
                return exits.FAILED
            request.dry_run = False
        answer = connection.call(connection.stub.Prune, request)
    if options.json:
        sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n")
    elif options.quiet:
        sys.stdout.writelines(f"{each.image.id or each.image.target_digest}\n" for each in answer.images)
    else:
        sys.stdout.write(as_text(answer, dry=options.dry_run))
    return 0


def as_text(answer: pb.PruneResponse, *, dry: bool) -> str:
    """Return a line for each image, and the sum."""
    verb = "would remove" if dry else "removed"
    lines = [f"{verb}: {text.printable(_name(each.image))} ({text.size(each.unique)})" for each in answer.images]
    if not lines:
        return "nothing to remove\n"
    total = f"{text.size(answer.freed)} {'would be' if dry else 'are being'} freed"
    return "".join(f"{line}\n" for line in [*lines, total])


def _confirmed(planned: pb.PruneResponse) -> bool:
    """Ask whether these images may go; the end of the input is no."""
    sys.stderr.write(f"{as_text(planned, dry=True)}remove them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _name(image: pb.ImageSummary) -> str:
    return ", ".join(image.repo_tags) or next(iter(image.repo_digests), image.id)
