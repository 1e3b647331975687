"""The real crictl."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.build import build


class Crictl:
    """Runs crictl against one socket."""

    def __init__(self, address: str, directory: Path) -> None:
        self.directory = directory
        config = directory / "crictl.yaml"
        config.write_text(f"runtime-endpoint: unix://{address}\nimage-endpoint: unix://{address}\ntimeout: 60\n")
        self.command = [str(build("cri-tools")["crictl"]), "--config", str(config)]

    def run(
        self, *arguments: str, stdin: str = "", check: bool = True, timeout: float = 90
    ) -> "subprocess.CompletedProcess[str]":
        """Run one crictl command to its end."""
        done = subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check:
            assert done.returncode == 0, f"crictl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run one crictl command and return its standard output without the last line feed."""
        return self.run(*arguments, stdin=stdin).stdout.rstrip("\n")

    def json(self, *arguments: str) -> Any:
        """Run a command with `-o json` and return what it printed."""
        verb, *rest = arguments
        return json.loads(self(verb, "-o", "json", *rest))

    @contextmanager
    def spawn(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run a command that goes on, its output in a pipe, and kill it at the end of the block."""
        with subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    def file(self, name: str, content: dict[str, Any]) -> str:
        """Write a pod or container configuration for runp and create."""
        path = self.directory / name
        path.write_text(json.dumps(content))
        return str(path)
