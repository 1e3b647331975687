"""Options that several verbs have."""

import argparse
import textwrap
from collections.abc import Callable
from typing import Any

from bulkhead.cli.images import exits
from bulkhead.proto import images_pb2 as pb

#: What may stand for an image that is here, and for one at a registry.
HERE, NAME = "a name, an id, or the beginning of an id", "a name: docker.io/library/ and :latest go without saying"


class Help(argparse.RawDescriptionHelpFormatter):
    """Fills what is prose to the terminal's width, and leaves what is set in lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(
            part if "\n  " in part else textwrap.fill(part, width, break_on_hyphens=False) for part in parts
        )


class Interspersed(argparse.ArgumentParser):
    """Takes options before, between and behind the arguments, as ctr's and docker's parsers do."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # its overloads say nothing more
        """Parse what a verb was given; argparse itself calls this for each of its two passes.

        What the verb does not know is refused here, beside its usage: the command as a whole would show its own.
        """
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


Run = Callable[[argparse.Namespace], int]
Verbs = "argparse._SubParsersAction[argparse.ArgumentParser]"


def verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Run,
    summary: str,
    description: str,
    examples: str,
    *,
    aliases: tuple[str, ...] = (),
) -> argparse.ArgumentParser:
    """Add a verb that says what it does, shows examples, and finds the stack."""
    made = verbs.add_parser(
        name,
        aliases=aliases,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples.rstrip()}\n\n{exits.TEXT}",
        formatter_class=Help,
    )
    where = made.add_argument_group("the stack").add_mutually_exclusive_group()
    where.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    where.add_argument("--socket", metavar="PATH", help="image-svc's socket, for who may not read the configuration")
    made.set_defaults(run_verb=run)
    return made


def output(parser: argparse.ArgumentParser, *, quiet: str = "", events: bool = False) -> None:
    """Add `--json` and, with a text of what it then prints, `--quiet`."""
    shown = parser.add_mutually_exclusive_group()
    what = "print every event as one JSON object a line" if events else "print JSON"
    shown.add_argument("--json", action="store_true", help=what)
    if quiet:
        shown.add_argument("-q", "--quiet", action="store_true", help=quiet)
    if events:
        parser.add_argument("--plain", action="store_true", help="plain lines instead of bars, on a terminal too")


def platforms(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--platform` and `--all-platforms`."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH",
        help=f"{what} this platform (linux/arm64, linux/arm/v7); may be repeated",
    )
    chosen.add_argument("--all-platforms", action="store_true", help=f"{what} every platform of the image")


def handler(parser: argparse.ArgumentParser) -> None:
    """Add `--runtime-handler`, and `--no-unpack`, which excludes it."""
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--no-unpack", action="store_true", help="keep the content only: to push, export or inspect it")
    ways.add_argument(
        "--runtime-handler",
        "--handler",
        default="",
        metavar="NAME",
        help="unpack it where containers of this handler have their images: into the handler's snapshotter",
    )


def selected(options: argparse.Namespace) -> pb.Platforms:
    """Return what `platforms` was told."""
    return pb.Platforms(all=options.all_platforms, names=options.platform)


def filters(parser: argparse.ArgumentParser, *, short: bool = True) -> None:
    """Add `--filter`, and `-f` where that does not mean something else."""
    parser.add_argument(
        *(["-f"] if short else []),
        "--filter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="reference=GLOB, label=KEY[=VALUE], platform=OS/ARCH (each also with ! before the value), dangling, used, "
        "pinned, encrypted, unpacked=true|false, until=36h or a time (came before), since=…; all that are given hold",
    )
