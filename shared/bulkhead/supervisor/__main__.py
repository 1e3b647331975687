"""The supervisor's own process: `bulkhead up` becomes it by exec, with an environment fit to be inherited.

Services are forks of it, and /proc/<pid>/environ of a fork shows the variables of the last exec.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from bulkhead.errors import BulkheadError
from bulkhead.launch.plan import environment
from bulkhead.launch.title import PADDING, set_title
from bulkhead.supervisor.roster import scripts_directory


def become(config: str | None, programs: Path | None = None) -> NoReturn:
    """Exec the supervisor in the place of this process."""
    options = [f"--config={config or ''}", f"--programs={programs or scripts_directory()}", f"--room={PADDING}"]
    command = [sys.executable, "-I", "-m", "bulkhead.supervisor", *options]
    os.execve(sys.executable, command, environment(os.environ, "/root"))  # noqa: S606 # the same program, cleaner


def main() -> int:
    """Run the stack; 1 after one line of what went wrong."""
    parser = argparse.ArgumentParser(prog="bulkhead up")
    parser.add_argument("--config", default="")
    parser.add_argument("--programs", type=Path, required=True, help="directory of the services' scripts")
    parser.add_argument("--room", help="unused: its length is the room for the titles of forks")
    options = parser.parse_args()
    set_title(("bulkhead", "up", *(["--config", options.config] if options.config else [])), "bulkhead")
    # Not at the top: the title is set before anything slow.
    from bulkhead.supervisor.up import up

    try:
        return up(options.config or None, options.programs)
    except BulkheadError as error:
        sys.stderr.write(f"bulkhead: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
