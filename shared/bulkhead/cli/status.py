"""`bulkhead status`: the compartments at a glance."""

import argparse
import json
import sys

from bulkhead import config
from bulkhead.config.model import Config
from bulkhead.supervisor import claims, faces, pods
from bulkhead.supervisor.faces import Face


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser("status", help="show every service: ready, not ready or down, and why")
    parser.add_argument("--config", metavar="FILE", help="default: /etc/bulkhead/config.toml, else built-in")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--listen", metavar="[HOST:]PORT", help="serve it over HTTP instead, until interrupted")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; 0 if every service is ready, 1 if not."""
    loaded = config.load(options.config)
    if options.listen:
        from bulkhead.cli import status_page  # its framework is 25 MB that no other command needs

        status_page.serve(loaded, options.listen)
        return 0
    found = faces.all_faces(loaded)
    shims = len(pods.live_shims(loaded))
    sys.stdout.write(as_json(found, shims) if options.json else as_table(loaded, found, shims))
    return 0 if all(face.state == "ready" for face in found) else 1


def as_table(loaded: Config, found: list[Face], shims: int) -> str:
    """Return one line a service, its complaints below it, and the number of pods."""
    width = max(len(face.name) for face in found)
    lines = [f"{claims.address(loaded)}, {shims} shims"]
    for face in found:
        port = loaded.bulkhead.metrics_ports.get(face.name, -1)
        where = f"127.0.0.1:{port}" if port > 0 else ""
        lines.append(f"  {face.name:{width}}  {face.state:9}  {where}".rstrip())
        lines += [f"  {'':{width}}    {line}" for line in face.lines]
    return "\n".join(lines) + "\n"


def as_json(found: list[Face], shims: int) -> str:
    """Return the same as one JSON object."""
    services = {face.name: {"state": face.state, "lines": list(face.lines)} for face in found}
    return json.dumps({"services": services, "shims": shims}) + "\n"
