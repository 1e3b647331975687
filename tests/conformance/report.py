"""What came of a run of critest, held against the committed list of what may fall short here.

`expected.toml` holds, for each group of specs that may be skipped or fail, the probe that explains it: the group counts
only while that probe says why on this host.
"""

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.probes import PROBES
from conformance.suite import spec_text

_EXPECTED = Path(__file__).with_name("expected.toml")
#: Ginkgo's words for a spec that did not succeed.
_FAILED = {"failed", "panicked", "timedout", "interrupted", "aborted"}


@dataclass(frozen=True)
class Group:
    """Specs that may fall short for one reason."""

    outcome: str
    specs: re.Pattern[str]
    probe: str


@dataclass(frozen=True)
class Spec:
    """One spec's fate."""

    name: str
    outcome: str
    message: str
    seconds: float
    #: Why it may be so on this host; "" when it may not.
    excuse: str = ""


@dataclass
class Report:
    """The specs of one run; `runtime` is the path of the OCI runtime that was under test."""

    runtime: str
    specs: list[Spec] = field(default_factory=list)

    def add(self, entries: list[dict[str, Any]], prefix: str = "", *, strict: bool = False) -> None:
        """Add Ginkgo's reports of specs; nothing excuses a spec that is added as strict."""
        reasons: dict[str, str] = {}
        for entry in entries:
            spec = _spec(entry, prefix)
            if spec is None:
                continue
            excuse = ""
            for group in [] if strict else expected():
                if group.outcome == spec.outcome and group.specs.search(spec.name):
                    excuse = reasons.setdefault(group.probe, PROBES[group.probe](self.runtime))
            self.specs.append(replace(spec, excuse=excuse))

    @property
    def good(self) -> bool:
        """Whether every spec passed or may fall short, and there were any."""
        return any(spec.outcome == "passed" for spec in self.specs) and all(
            spec.outcome == "passed" or spec.excuse for spec in self.specs
        )

    def text(self) -> str:
        """Return the counts, and a paragraph for each spec that did not pass."""
        lines = []
        for spec in sorted(self.specs, key=lambda spec: (bool(spec.excuse), spec.outcome, spec.name)):
            if spec.outcome == "passed":
                continue
            reason = spec.excuse or f"NOT ALLOWED: {spec.message}"
            lines.append(f"{spec.outcome.upper()} {spec.name}\n    {reason}")
        counts = Counter(spec.outcome for spec in self.specs)
        unexpected = sum(spec.outcome != "passed" and not spec.excuse for spec in self.specs)
        lines.append(
            f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
            f" ({unexpected} not allowed); {sum(spec.seconds for spec in self.specs):.0f} s in specs"
        )
        return "\n".join(lines)


def expected() -> list[Group]:
    """Return the committed groups."""
    document = tomllib.loads(_EXPECTED.read_text())
    return [Group(entry["outcome"], re.compile(entry["specs"]), entry["probe"]) for entry in document["group"]]


def _spec(entry: dict[str, Any], prefix: str) -> Spec | None:
    """Return one entry of Ginkgo's report; None for a benchmark and for what is no spec and went well."""
    name, state = spec_text(entry), entry["State"]
    message = (entry.get("Failure") or {}).get("Message", "").strip()
    if "benchmark" in name or (entry["LeafNodeType"] != "It" and state == "passed"):
        return None
    if state == "skipped" and not message:
        # Out of the focus.
        return None
    outcome = "failed" if state in _FAILED else state
    return Spec(prefix + name, outcome, message, entry["RunTime"] / 1e9)
