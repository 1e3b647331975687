"""Containers whose shim died before it could have its OCI runtime delete them: what the runtime still keeps of them."""

import json
import logging
from pathlib import Path

from bulkhead import command
from bulkhead.errors import BulkheadError
from sandbox_svc import trees

logger = logging.getLogger(__name__)

#: What our shim writes beside config.json before it creates a container and removes once it has deleted it.
NOTE = "runtime.json"
#: Seconds that the runtime may take.
TIMEOUT = 30.0


def drop(bundle: Path, ident: str) -> None:
    """Have the runtime that a shim's note names delete a container, whose processes are gone; without a note, nothing.

    Its `delete` runs the hooks for the end and drops systemd's scope. Its state goes even if that fails: a runtime that
    a hybrid host's cgroups stop, or that is no longer installed, must not keep a pod from being removed.
    """
    note = bundle / NOTE
    try:
        data = json.loads(note.read_text())
        binary, state = str(data["binary"]), Path(data["root"]) / ident
    except (OSError, ValueError, KeyError, TypeError):
        return
    if state.is_dir():
        driver = ["--systemd-cgroup"] if data.get("systemd") else []
        try:
            done = command.run(
                [binary, "--root", str(state.parent), *driver, "delete", "--force", ident], timeout=TIMEOUT
            )
            complaint = done.complaint if done.returncode else ""
        except BulkheadError as error:
            complaint = str(error)
        if complaint:
            logger.warning("%s does not delete %s: %s", binary, ident, complaint)
        trees.remove(state)
    note.unlink(missing_ok=True)
