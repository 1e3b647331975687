"""What a runtime keeps of a container whose shim died."""

import json
from pathlib import Path

import pytest

from sandbox_svc.shim.lifecycle import RUNTIME_FILE
from sandbox_svc.task import orphans


def bundle_of(tmp_path: Path, binary: str, **more: object) -> tuple[Path, Path]:
    bundle, state = tmp_path / "bundle", tmp_path / "runtime" / "c1"
    bundle.mkdir()
    state.mkdir(parents=True)
    (state / "state.json").touch()
    (bundle / RUNTIME_FILE).write_text(json.dumps({"binary": binary, "root": str(state.parent), **more}))
    return bundle, state


@pytest.mark.parametrize("systemd", [True, False])
def test_the_runtime_deletes(tmp_path: Path, systemd: bool) -> None:
    """The runtime of the shim's note is called with its root and driver; its state and the note are gone then."""
    runtime = tmp_path / "runc"
    runtime.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    runtime.chmod(0o755)
    bundle, state = bundle_of(tmp_path, str(runtime), systemd=systemd)

    orphans.drop(bundle, "c1")

    driver = "--systemd-cgroup " if systemd else ""
    assert (tmp_path / "called").read_text() == f"--root {state.parent} {driver}delete --force c1\n"
    assert not state.exists()
    assert not (bundle / RUNTIME_FILE).exists()


@pytest.mark.parametrize("binary", ["/bin/false", "/nonexistent/runc"])
def test_a_runtime_that_fails(tmp_path: Path, binary: str) -> None:
    """A runtime that refuses or is gone leaves no state either."""
    bundle, state = bundle_of(tmp_path, binary)
    orphans.drop(bundle, "c1")
    assert not state.exists()


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"binary": 1, "root": null}'])
def test_a_broken_note(tmp_path: Path, note: str) -> None:
    """A note that a crash cut short, and none at all, are passed over."""
    orphans.drop(tmp_path, "c1")
    (tmp_path / RUNTIME_FILE).write_text(note)
    orphans.drop(tmp_path, "c1")
