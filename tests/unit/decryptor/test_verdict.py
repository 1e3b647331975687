"""Refusals: an encrypted layer is named with its schemes, with what is loaded and with what was tried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decryptor import verdict
from decryptor.files import KeyFile
from decryptor.keyring import Keyring

DIGEST = "sha256:" + "ab" * 32


def ring(formats: dict[str, bytes], *names: str) -> Keyring:
    return Keyring([KeyFile(name, formats[name]) for name in names])


def annotations(*schemes: str) -> dict[str, str]:
    return {f"org.opencontainers.image.enc.keys.{scheme}": "e30=" for scheme in schemes}


def test_a_missing_key_names_schemes_and_keys(formats: dict[str, bytes]) -> None:
    """Without a fitting key the error begins as imgcrypt's and names layer, schemes, keys and needs."""
    text = verdict.refusal(DIGEST, annotations("jwe", "pgp"), [ring(formats, "cert.pem")], [])

    assert text == (
        "you are not authorized to use this image: missing private key needed for decryption: "
        f"layer {DIGEST} (schemes: jwe, pgp; keys loaded: 1 certificate): "
        "jwe needs private-key or jwk; pgp needs pgp"
    )


def test_keys_of_all_rings_are_counted(formats: dict[str, bytes]) -> None:
    """Keys granted for one use count beside the node's."""
    rings = [ring(formats, "pkcs8.pem"), ring(formats, "ec.jwk", "sec1.pem")]

    assert "keys loaded: 1 jwk, 2 private-key" in verdict.refusal(DIGEST, annotations("pgp"), rings, [])


def test_keys_tried_are_named_up_to_a_limit(formats: dict[str, bytes]) -> None:
    """Sixteen keys tried are shown, the others are counted; schemes not tried say what they want."""
    attempts = [f"jwe: key{number}.pem" for number in range(20)]
    text = verdict.refusal(DIGEST, annotations("jwe", "rot13"), [ring(formats, "pkcs8.pem")], attempts)

    assert "none of the private keys could be used" in text
    assert "jwe: key15.pem; and 4 more; rot13 is not a known scheme" in text
    assert "key16.pem" not in text


def test_an_unconfigured_provider_is_named() -> None:
    """A layer for a key provider that nobody configured says which."""
    text = verdict.refusal(DIGEST, annotations("provider.vault"), [Keyring([])], [])

    assert "provider.vault needs the key provider vault" in text.replace("'", "")


@pytest.mark.parametrize(
    ("scheme", "label"),
    [("jwe", "jwe"), ("provider.vault", "provider"), ("provider.other", "provider"), ("rot13", "unknown")],
)
def test_a_metric_has_few_labels(scheme: str, label: str) -> None:
    """What an image names its schemes makes no label of its own."""
    assert verdict.label(scheme) == label


@given(st.text(max_size=300), st.dictionaries(st.text(max_size=200), st.text(max_size=5), max_size=5))
def test_names_from_an_image_stay_printable(digest: str, extra: dict[str, str]) -> None:
    """Whatever an image says, the error is one line of printable characters."""
    given_annotations = {f"org.opencontainers.image.enc.keys.{name}": value for name, value in extra.items()}

    assert verdict.refusal(digest, given_annotations, [Keyring([])], []).isprintable()
    assert verdict.unwrapped_by_nobody(digest).isprintable()
