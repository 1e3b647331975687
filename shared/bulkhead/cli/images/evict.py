"""`bulkhead images evict`."""

import argparse
import sys

from bulkhead.cli.images import arguments, client, progress, text
from bulkhead.proto import images_pb2 as pb

_DESCRIPTION = """Drop what was unpacked of encrypted images whose keys this node does not have any more. Their
encrypted content stays, under the same names; layers that a plain image needs stay, and containers keep theirs until
they are removed. Without arguments every encrypted image is checked."""
_EXAMPLES = """  rm /etc/containerd/ocicrypt/keys/mykey.pem && sleep 3 && bulkhead images evict
  bulkhead images evict --dry-run
  bulkhead images evict registry:5000/bash.enc:latest"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = arguments.verb(verbs, "evict", run, "drop decrypted layers of lost keys", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("images", nargs="*", metavar="IMAGE")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would go")
    arguments.output(parser, quiet="print digests of manifests only")


def run(options: argparse.Namespace) -> int:
    """Drop, and print what went and what did not."""
    request = pb.EvictRequest(images=options.images, dry_run=options.dry_run)
    with client.connected(options) as connection:
        answer = connection.call(connection.stub.Evict, request)
    if options.json:
        sys.stdout.write(f"{progress.as_json(answer, indent=2)}\n")
    elif options.quiet:
        sys.stdout.writelines(f"{image.manifest_digest}\n" for image in answer.images)
    else:
        sys.stdout.write(as_text(answer, dry=options.dry_run))
    return 0


def as_text(answer: pb.EvictResponse, *, dry: bool) -> str:
    """Return a line for each image and layer, and the sum."""
    verb = "would evict" if dry else "evicted"
    lines = []
    for image in answer.images:
        rest = "encrypted content is kept" if image.kept else "its encrypted layers are not here, so its names go"
        lines.append(f"{verb}: {', '.join(image.names)} ({rest})")
        lines.append(f"  {image.reason}")
    removed = [layer for layer in answer.layers if not layer.used_by]
    lines += [f"layer {text.short(layer.diff_id)}: {'would go' if dry else 'dropped'}" for layer in removed]
    for layer in answer.layers:
        if layer.used_by:
            users = ", ".join(key[:13] for key in layer.used_by)
            lines.append(f"layer {text.short(layer.diff_id)}: stays until its containers are removed: {users}")
    total = text.size(sum(layer.size for layer in removed))
    lines.append(f"{len(answer.images)} images, {len(removed)} layers, {total} {'would be' if dry else 'were'} freed")
    return "".join(f"{text.printable(line)}\n" for line in lines)
