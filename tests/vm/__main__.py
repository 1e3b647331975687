"""`python -m vm COMMAND`: boot the machine, run a shell command, print its output, exit with its status."""

import sys

from vm.image import image
from vm.machine import Machine
from vm.payload import payload


def main() -> int:
    """Run the words of the command line as one shell command; without any, each line of standard input as one."""
    base = image()
    with Machine(base, payload(base)) as machine:
        print(f"booted in {machine.boot_seconds:.0f} s", file=sys.stderr)
        commands = [" ".join(sys.argv[1:])] if sys.argv[1:] else sys.stdin
        status = 0
        for command in commands:
            done = machine.run(command, timeout=900)
            print(done.output, end="", flush=True)
            status = done.status
        return status


if __name__ == "__main__":
    sys.exit(main())
