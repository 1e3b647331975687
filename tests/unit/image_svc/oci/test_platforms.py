"""The entry of an index is chosen as containerd chooses."""

import pytest

from image_svc.oci.platforms import Platform, choose, current, normalize


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("linux", "x86_64", ""), "linux/amd64"),
        (("Linux", "aarch64", ""), "linux/arm64"),
        (("linux", "arm64", "v8"), "linux/arm64"),
        (("linux", "arm64", "v9"), "linux/arm64/v9"),
        (("linux", "amd64", "v1"), "linux/amd64"),
        (("linux", "arm", ""), "linux/arm/v7"),
        (("linux", "arm", "6"), "linux/arm/v6"),
        (("linux", "armhf", ""), "linux/arm/v7"),
        (("linux", "armel", ""), "linux/arm/v6"),
        (("linux", "i386", ""), "linux/386"),
        (("linux", "riscv64", ""), "linux/riscv64"),
    ],
)
def test_canonical_names(given: tuple[str, str, str], expected: str) -> None:
    """Names that mean the same are the same."""
    assert str(normalize(*given)) == expected


def linux(text: str) -> Platform:
    """Read architecture/variant."""
    architecture, _, variant = text.partition("/")
    return normalize("linux", architecture, variant)


@pytest.mark.parametrize(
    ("host", "offers", "chosen"),
    [
        ("amd64", ["arm64", "amd64"], 1),
        ("amd64", ["arm64", "s390x"], None),
        ("amd64/v3", ["amd64", "amd64/v2", "amd64/v4"], 1),
        ("amd64", ["amd64/v2"], None),
        ("amd64", ["386"], 0),
        ("amd64", ["386", "amd64"], 1),
        ("arm64", ["arm/v7", "arm64/v8"], 1),
        ("arm64", ["arm/v5", "arm/v7"], 1),
        ("arm/v7", ["arm/v5", "arm/v6", "arm64"], 1),
        ("arm/v6", ["arm/v7"], None),
        ("riscv64", ["riscv64", "riscv64"], 0),
        ("amd64", [], None),
    ],
)
def test_choice(host: str, offers: list[str], chosen: int | None) -> None:
    """The best variant that the machine runs wins, the first among equals."""
    assert choose([linux(offer) for offer in offers], linux(host)) == chosen


def test_other_systems_and_attestations() -> None:
    """Windows images and build attestations are not chosen; an entry without a platform fits last."""
    offers = [normalize("windows", "amd64"), normalize("unknown", "unknown"), None, normalize("linux", "386")]

    assert choose(offers[:2], linux("amd64")) is None
    assert choose(offers[:3], linux("amd64")) == 2
    assert choose(offers, linux("amd64")) == 3


def test_this_machine() -> None:
    """This machine has a platform that fits itself."""
    assert choose([current()], current()) == 0
