"""A run of critest held against the list of what may fall short: an excuse needs its probe, and the list no more."""

import re
from typing import Any

import pytest

from conformance import probes
from conformance import report as reports
from conformance.probes import Subject
from conformance.report import Group, Report

SUBJECT = Subject("/bin/runtime", "127.0.0.1:1")


def entry(name: str, state: str = "passed", message: str = "", kind: str = "It") -> dict[str, Any]:
    """Return a spec as Ginkgo's JSON report has it."""
    return {
        "ContainerHierarchyTexts": ["[k8s.io] Part"],
        "LeafNodeText": name,
        "LeafNodeType": kind,
        "State": state,
        "Failure": {"Message": message},
        "RunTime": 10**9,
    }


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One group, skips that begin with "odd", and what its probe says."""
    said = {"why": "the kernel has none"}
    monkeypatch.setattr(reports, "PROBES", {"asked": lambda subject: said["why"]})
    monkeypatch.setattr(reports, "expected", lambda: [Group("skipped", re.compile("odd"), "asked")])
    return said


def judged(*entries: dict[str, Any], whole: bool = True, strict: bool = False) -> reports.Verdict:
    """Return the verdict on a run."""
    report = Report(SUBJECT, whole=whole)
    report.add([entry("good")])
    report.add(list(entries), strict=strict)
    return report.judged()


def test_a_skip_names_the_probe_that_explains_it(probe: dict[str, str]) -> None:
    """What the list allows and the probe explains is good, and the text has probe and reason."""
    verdict = judged(entry("odd one", "skipped", "not here"))
    assert verdict.good
    assert "SKIPPED [k8s.io] Part odd one\n    probe asked: the kernel has none" in verdict.text()
    assert "1 passed, 0 failed, 1 skipped (0 not allowed)" in verdict.text()


def test_nothing_is_excused_without_its_probe(probe: dict[str, str]) -> None:
    """Where nothing lacks, the same skip fails the run, with critest's own words."""
    probe["why"] = ""
    verdict = judged(entry("odd one", "skipped", "not here"))
    assert not verdict.good
    assert "NOT ALLOWED: not here" in verdict.text()


@pytest.mark.parametrize(
    "short",
    [entry("odd one", "failed", "broke"), entry("odd one", "panicked"), entry("other", "skipped", "not here")],
)
def test_only_what_the_group_says_is_excused(probe: dict[str, str], short: dict[str, Any]) -> None:
    """A skip excuses no failure, and one spec no other."""
    assert not judged(short, entry("odd two", "skipped", "not here")).good


def test_what_is_added_as_strict_has_no_excuse(probe: dict[str, str]) -> None:
    """The list is for the suite itself, not for what we add to it."""
    assert not judged(entry("odd one", "skipped", "not here"), whole=False, strict=True).good


def test_the_list_holds_no_more_than_is_needed(probe: dict[str, str]) -> None:
    """A group that no spec of a whole run needed fails it; a part of the suite cannot tell."""
    verdict = judged()
    assert not verdict.good
    assert "NOT NEEDED in expected.toml: skipped 'odd' (probe asked: the kernel has none)" in verdict.text()
    assert judged(whole=False).good
    probe["why"] = ""
    assert judged().good


def test_a_run_without_specs_is_no_success(probe: dict[str, str]) -> None:
    """What is out of focus, a benchmark or no spec does not count, so a focus that matches nothing fails."""
    report = Report(SUBJECT, whole=False)
    report.add([entry("far", "skipped"), entry("set up", kind="BeforeSuite"), entry("a benchmark of it")])
    assert not report.specs
    assert not report.judged().good


def test_the_committed_list_is_read() -> None:
    """Every group names a probe that there is and an outcome that there is."""
    groups = reports.expected()
    assert groups
    assert {group.probe for group in groups} == set(probes.PROBES)
    assert {group.outcome for group in groups} <= {"skipped", "failed"}
