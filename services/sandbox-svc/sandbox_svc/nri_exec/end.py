"""The end of what exec plugins have heard of: an entry of the ledger, so that they hear of it after a crash, too."""

from collections.abc import Mapping
from pathlib import Path

from sandbox_svc import bundle
from sandbox_svc.nri_exec.chain import Chain
from sandbox_svc.nri_exec.messages import Subject
from sandbox_svc.store.database import Entry

#: The ledger's kind of entry: plugins have heard of a creation and are to hear of the end.
KIND = "nri_exec"


def entry(ident: str, sandbox_id: str, labels: Mapping[str, str]) -> Entry:
    """Return the entry of a container, or of a pod, whose id is then that of its sandbox, too."""
    return Entry(KIND, {"id": ident, "sandbox": sandbox_id, "labels": dict(labels)})


def undo(chain: Chain, entry: Entry, place: Path) -> None:
    """Tell plugins; the bundle at `place` may be gone already."""
    data = entry.data
    try:
        spec = bundle.read(place)
    except (OSError, ValueError):
        spec = {}
    chain.delete(Subject(data["id"], data["sandbox"], -1, spec, data["labels"]))
