"""Services as forks of the supervisor: what they all import is imported once and shared, 57 MB on a whole stack.

The supervisor has one thread and no secrets (see settings.py), which is what makes forking it sound. A fork does in its
own process what `python -m bulkhead.launch` does before exec, and then runs the program's script instead of exec'ing
it; a program that is not a script of this interpreter is exec'd.
"""

import importlib
import logging
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from bulkhead.launch.enter import confine, execute, variables
from bulkhead.launch.plan import Plan
from bulkhead.launch.title import set_title

#: What at least two services import. The pod's zygote is no fork of this: shims pay for every page they inherit.
SHARED = (
    "argparse",
    "asyncio",
    "concurrent.futures",
    "cryptography.x509",
    "sqlite3",
    "ssl",
    "bulkhead.config",
    "bulkhead.log",
    "bulkhead.metrics",
    "bulkhead.rpc",
    "bulkhead.seqpacket",
    "bulkhead.service",
    "bulkhead.proto.images_pb2_grpc",
    "bulkhead.proto.keys_pb2_grpc",
    "bulkhead.proto.streams_pb2_grpc",
    "bulkhead.proto.runtime.v1.api_pb2_grpc",
)
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def warm() -> None:
    """Import what services share; heap.settle() is to follow, shortly before the first fork."""
    for name in SHARED:
        importlib.import_module(name)


def fork(plan: Plan, output: int) -> int:
    """Start the plan's program in a fork of this process, its output going to that descriptor; return the pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Blocked, so that a signal to the child is not taken by a handler of this process before it is reset.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    pid = os.fork()
    if pid == 0:
        _child(plan, output, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _child(plan: Plan, output: int, parent: int) -> NoReturn:
    """Run the program; nothing of the supervisor's frames, which this one stands on, is ever returned to."""
    status = 1
    try:
        _settle(plan, output)
        confine(plan, parent)
        status = _run(plan)
    except OSError as error:
        os.write(2, f"launch: {error.strerror or error}\n".encode())
    except BaseException:  # whatever it is, it ends here
        os.write(2, traceback.format_exc().encode())
    finally:
        logging.shutdown()
        os._exit(status)


def _settle(plan: Plan, output: int) -> None:
    """Leave what belongs to the supervisor: descriptors, signal handlers, process group, command line."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    for standard in (1, 2):
        os.dup2(output, standard)
    kept = 3
    if plan.listen_fd >= 0:
        kept = max(plan.listen_fd, 3) + 1
        os.closerange(3, plan.listen_fd)
    os.closerange(kept, os.sysconf("SC_OPEN_MAX"))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _run(plan: Plan) -> int:
    """Run the program's script in this process and return its exit status; exec what is no such script."""
    environment = variables(plan)
    if not _is_ours(plan.arguments[0]):
        execute(plan, environment)
    set_title((sys.executable, *plan.arguments), Path(plan.arguments[0]).name)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(plan.arguments)
    try:
        runpy.run_path(plan.arguments[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            os.write(2, f"{ended.code}\n".encode())
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _is_ours(program: str) -> bool:
    """Whether a program is a script of this very interpreter."""
    with open(program, "rb") as file:
        first = file.readline(512).rstrip()
    interpreter = os.path.dirname(sys.executable)
    return first.startswith(os.fsencode(f"#!{interpreter}/python")) and b" " not in first
