"""What README says is not there yet is what the code says is not there yet."""

import re
from pathlib import Path

from google.protobuf import json_format

from bulkhead.config.unhonoured import UNHONOURED
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import validate
from sandbox_svc.service import unbuilt

README = (Path(__file__).parents[2] / "README.md").read_text()


def listed(name: str) -> set[str]:
    """Return the names between two marks of README."""
    found = re.search(rf"<!-- {name} -->(.*?)<!-- end -->", README, re.DOTALL)
    assert found is not None
    return {re.sub(r"\s*\(.*?\)", "", item, flags=re.DOTALL).strip() for item in found[1].split(",")} - {""}


def test_options_without_effect() -> None:
    """Every option that warns of having no effect yet is listed, and no other."""
    assert listed("unhonoured") == {path.split(".")[-1] for path in UNHONOURED}


def test_calls_that_are_unimplemented() -> None:
    """Every CRI call that answers UNIMPLEMENTED is listed, and no other."""
    assert listed("unimplemented") == set(unbuilt())


def test_examples_are_sound() -> None:
    """The pod and the container that README starts pass the checks of sandbox-svc."""
    examples = Path(__file__).parents[2] / "docs" / "examples"
    pod = json_format.Parse((examples / "pod.json").read_text(), cri.PodSandboxConfig())
    container = json_format.Parse((examples / "container.json").read_text(), cri.ContainerConfig())

    validate.pod(pod)
    validate.container(container)
    assert container.log_path
