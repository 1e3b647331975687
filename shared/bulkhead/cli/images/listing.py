"""`bulkhead images ls`."""

import argparse
import sys
from collections.abc import Callable, Iterable

from bulkhead.cli.images import arguments, client, progress, text
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """List the images that are here. An image without a tag (its tag moved to a newer one) shows <none>.
Content that is kept but not unpacked is listed as well; the kubelet does not see it."""
_EXAMPLES = """  bulkhead images ls
  bulkhead images ls 'registry:5000/*' --sort size
  bulkhead images ls --digests --no-trunc
  bulkhead images ls --filter dangling=true --quiet
  bulkhead images ls --filter used=false --filter until=7d --json"""
_SORTS: dict[str, Callable[[pb.ImageSummary], object]] = {
    "name": lambda image: _names(image)[0],
    "size": lambda image: -image.size,
    "created": lambda image: -image.created_at,
    "pulled": lambda image: -image.pulled_at,
}


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "ls", run, "list images", _DESCRIPTION, _EXAMPLES, aliases=("list",))
    parser.add_argument("reference", nargs="?", default="", metavar="GLOB", help="only names that match")
    arguments.filters(parser)
    parser.add_argument("--dangling", action="store_true", help="only images without a tag")
    parser.add_argument("--sort", choices=sorted(_SORTS), default="name", help="default: name; size: largest first")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--digests", action="store_true", help="show the digest that each name stands for")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids and digests, exact sizes and times")
    arguments.output(parser, quiet="print ids only")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    wanted = list(options.filter)
    if options.reference:
        wanted.append(f"reference={options.reference}")
    if options.dangling:
        wanted.append("dangling=true")
    with client.connected(options) as connection:
        found = connection.call(connection.stub.List, pb.ListRequest(filters=wanted)).images
    images = sorted(found, key=_SORTS[options.sort], reverse=options.reverse)  # type: ignore[arg-type] # of one kind
    if options.json:
        sys.stdout.write(f"{progress.as_json(pb.ListResponse(images=images), indent=2)}\n")
    elif options.quiet:
        ids = dict.fromkeys(image.id or image.target_digest for image in images)
        sys.stdout.writelines(f"{each}\n" for each in ids)
    else:
        sys.stdout.write(as_table(images, digests=options.digests, whole=options.no_trunc))
    return 0


def as_table(images: Iterable[pb.ImageSummary], *, digests: bool, whole: bool) -> str:
    """Return a line for each name."""
    heads = ["REPOSITORY", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "PULLED", "SIZE", "PLATFORM", "STATE"]
    rows = []
    for image in images:
        for name in _names(image):
            repository, tag = split(name)
            target = image.targets.get(name, image.target_digest)
            digest = [target if whole else text.short(target)] if digests else []
            ident = image.id if whole else text.short(image.id)
            when = text.moment(image.pulled_at) if whole else text.age(image.pulled_at)
            size = str(image.size) if whole else text.size(image.size)
            others = image.target_platforms
            offered = others[target].names if target in others else image.platforms
            rows.append([repository, tag, *digest, ident, when, size, ",".join(offered), state(image)])
    return text.table(heads, rows, right=("SIZE",))


def split(name: str) -> tuple[str, str]:
    """Return repository and tag, `<none>` for a name by digest."""
    if "@" in name:
        return name.partition("@")[0], "<none>"
    repository, _, tag = name.rpartition(":")
    return repository, tag


def state(image: pb.ImageSummary) -> str:
    """Return what is special about an image, in a few words."""
    words = [
        "pinned" if image.pinned else "",
        "in use" if image.used_by else "",
        "encrypted" if image.encrypted else "",
        "" if image.unpacked else "not unpacked",
    ]
    return ", ".join(word for word in words if word)


def _names(image: pb.ImageSummary) -> list[str]:
    return list(image.repo_tags) or list(image.repo_digests)[:1] or ["<none>"]
