"""The default validator: what is refused, what is required, and how annotations say so."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.config.model import NriValidator
from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd.nri_pb2 import ContainerAdjustment, Field, PodSandbox, SecurityProfile
from sandbox_svc.nri import validator
from sandbox_svc.nri.owners import Owners

RULES = NriValidator(enable=True, required_plugins=("a",), tolerate_missing_plugins_annotation="t")
REQUIRED = validator.REQUIRED_ANNOTATION


def required(rules: NriValidator, container: str | None, **annotations: str) -> list[str]:
    return validator.required_plugins(rules, PodSandbox(annotations=annotations), container)


@pytest.mark.parametrize(
    ("container", "annotations", "expected"),
    [
        ("c", {}, ["a"]),
        ("c", {REQUIRED: "[b]"}, ["a", "b"]),
        ("c", {REQUIRED: "- b\n- c"}, ["a", "b", "c"]),
        ("c", {REQUIRED: '["10-b"]'}, ["a", "10-b"]),
        ("c", {f"{REQUIRED}/pod": "[p]", REQUIRED: "[x]"}, ["a", "p"]),
        ("c", {f"{REQUIRED}/container.c": "[k]", f"{REQUIRED}/pod": "[p]"}, ["a", "k"]),
        ("d", {f"{REQUIRED}/container.c": "[k]"}, ["a"]),
        ("c", {REQUIRED: "null"}, ["a"]),
        ("c", {"t": "true"}, []),
        ("c", {"t/pod": "1", REQUIRED: "[b]"}, []),
        ("c", {"t/pod": "true", "t/container.c": "false"}, ["a"]),
        ("c", {"t/container.d": "true"}, ["a"]),
        (None, {"t/container.d": "true"}, []),
        (None, {f"{REQUIRED}/container.c": "[k]"}, ["a"]),
        (None, {f"{REQUIRED}/pod": "[p]"}, ["a", "p"]),
    ],
)
def test_what_is_required(container: str | None, annotations: dict[str, str], expected: list[str]) -> None:
    """The container's annotation counts before the pod's, and a tolerance before all requirements."""
    assert required(RULES, container, **annotations) == expected


def test_nothing_is_required_of_a_validator_that_is_off() -> None:
    """Without `enable`, as in containerd, names and annotations have no effect."""
    assert required(NriValidator(required_plugins=("a",)), "c", **{REQUIRED: "[b]"}) == []


@pytest.mark.parametrize(
    "annotations",
    [
        {"t": "yes"},
        {"t": ""},
        {REQUIRED: "a"},
        {REQUIRED: "{a: b}"},
        {REQUIRED: "[[a]]"},
        {REQUIRED: "[" * 5000},
        {REQUIRED: f"[{'a,' * 20_000}]"},
    ],
)
def test_an_annotation_that_cannot_be_read_refuses(annotations: dict[str, str]) -> None:
    """What cannot be read is no permission."""
    with pytest.raises(FailedPrecondition, match="annotation"):
        required(RULES, "c", **annotations)


@given(value=st.text(max_size=60))
def test_any_annotation_is_names_or_refused(value: str) -> None:
    """Whatever the annotation holds, it is a list of names or a clear refusal."""
    try:
        names = required(RULES, "c", **{REQUIRED: value})
    except FailedPrecondition:
        return

    assert names[0] == "a"
    assert all(isinstance(name, str) for name in names)


def test_missing_goes_by_name_or_index() -> None:
    """A plugin is found by its name, or by its index and name."""
    assert validator.missing(["a", "10-a", "20-a", "b"], [("10", "a")]) == ["20-a", "b"]


def owned(field: Field, key: str | None = None) -> Owners:
    owners = Owners()
    owners.claim("c", field, "10-p", key)
    return owners


UNCONFINED, DEFAULT, LOCALHOST = (
    SecurityProfile(profile_type=kind)
    for kind in (SecurityProfile.UNCONFINED, SecurityProfile.RUNTIME_DEFAULT, SecurityProfile.LOCALHOST)
)


@pytest.mark.parametrize(
    ("option", "owners", "profile"),
    [
        ("reject_oci_hook_adjustment", owned(Field.OciHooks), None),
        ("reject_unconfined_seccomp_adjustment", owned(Field.SeccompPolicy), None),
        ("reject_unconfined_seccomp_adjustment", owned(Field.SeccompPolicy), UNCONFINED),
        ("reject_runtime_default_seccomp_adjustment", owned(Field.SeccompPolicy), DEFAULT),
        ("reject_custom_seccomp_adjustment", owned(Field.SeccompPolicy), LOCALHOST),
        ("reject_namespace_adjustment", owned(Field.Namespace, "network"), None),
        ("reject_sysctl_adjustment", owned(Field.Sysctl, "kernel.x"), None),
    ],
)
def test_each_rule_refuses_its_own(option: str, owners: Owners, profile: Any) -> None:
    """A rule that is on refuses, with the plugin's name and its own; all the others together do not."""
    adjust = ContainerAdjustment()
    adjust.linux.sysctl["kernel.x"] = "1"
    only: dict[str, Any] = {option: True}
    every: dict[str, Any] = {name: True for name in vars(NriValidator()) if name.startswith("reject_")}

    with pytest.raises(FailedPrecondition, match=f"10-p .*{option}"):
        validator.check(NriValidator(**only), adjust, owners, "c", profile)
    validator.check(NriValidator(**(every | {option: False})), adjust, owners, "c", profile)
    validator.check(NriValidator(**every), adjust, Owners(), "c", profile)
