"""`python -m bulkhead.launch PLAN`: carry out a plan in this process and become the program it names.

It runs alone and single-threaded, so nothing here happens between fork and exec of a process with threads.
"""

import os
import sys

from bulkhead.launch.enter import enter
from bulkhead.launch.plan import Plan

if __name__ == "__main__":
    try:
        enter(Plan.from_json(sys.argv[1]), os.getppid())
    except OSError as error:
        sys.exit(f"launch: {error.strerror or error}{f' ({error.filename})' if error.filename else ''}")
