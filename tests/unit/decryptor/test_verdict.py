"""Refusals: an encrypted layer is named with its schemes and with what is loaded; plain layers pass."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import keys_pb2
from decryptor import verdict
from decryptor.files import KeyFile
from decryptor.keyring import Keyring
from decryptor.service import Keys

DIGEST = "sha256:" + "ab" * 32


def ring(formats: dict[str, bytes], *names: str) -> Keyring:
    return Keyring([KeyFile(name, formats[name]) for name in names])


def annotations(*schemes: str) -> dict[str, str]:
    return {f"org.opencontainers.image.enc.keys.{scheme}": "e30=" for scheme in schemes}


def test_a_missing_key_names_schemes_and_keys(formats: dict[str, bytes]) -> None:
    """Without a fitting key the error names layer, schemes, what is loaded and what each scheme needs."""
    text = verdict.refusal(DIGEST, annotations("jwe", "pgp"), ring(formats, "cert.pem"))

    assert text == (
        f"layer {DIGEST} is encrypted (schemes: jwe, pgp; keys loaded: 1 certificate): no loaded key fits: "
        "jwe needs private-key or jwk; pgp needs pgp"
    )


def test_a_fitting_key_says_what_is_missing_still(formats: dict[str, bytes]) -> None:
    """With a fitting key the error says that this version cannot decrypt."""
    text = verdict.refusal(DIGEST, annotations("jwe"), ring(formats, "pkcs8.pem"))

    assert text.endswith("a key of a fitting kind is loaded, but this version of Bulkhead cannot decrypt layers yet")


@pytest.mark.parametrize(
    ("scheme", "names", "fits"),
    [
        ("jwe", ["ec.jwk"], True),
        ("jwe", ["encrypted-pkcs8.pem"], False),
        ("pkcs7", ["pkcs8.pem"], False),
        ("pkcs7", ["pkcs8.pem", "cert.pem"], True),
        ("pgp", ["ring.gpg"], True),
        ("pkcs11", ["token.yaml"], True),
        ("provider.vault", ["pkcs8.pem"], False),
        ("rot13", ["pkcs8.pem"], False),
    ],
)
def test_which_kinds_open_which_scheme(formats: dict[str, bytes], scheme: str, names: list[str], fits: bool) -> None:
    """A key that cannot be used opens nothing; PKCS#7 needs the certificate too."""
    assert verdict.fits(scheme, set(ring(formats, *names).kinds())) is fits


def test_a_layer_without_wrapped_key_is_named() -> None:
    """An encrypted media type without annotations is refused as such."""
    assert "no annotation org.opencontainers.image.enc.keys.<scheme>" in verdict.refusal(DIGEST, {}, Keyring([]))


@given(st.text(max_size=300), st.dictionaries(st.text(max_size=200), st.text(max_size=5), max_size=5))
def test_names_from_an_image_stay_printable(digest: str, extra: dict[str, str]) -> None:
    """Whatever an image says, the error is one line of printable characters."""
    given_annotations = {f"org.opencontainers.image.enc.keys.{name}": value for name, value in extra.items()}
    text = verdict.refusal(digest, given_annotations, Keyring([]))

    assert text.isprintable()


def test_plain_layers_pass() -> None:
    """Check of an image without encrypted layers succeeds without any key."""
    layer = keys_pb2.Layer(digest=DIGEST, media_type="application/vnd.oci.image.layer.v1.tar+gzip")

    assert Keys(Keyring([])).Check(keys_pb2.CheckRequest(layers=[layer]), None) == keys_pb2.CheckResponse()  # type: ignore[arg-type]


def test_an_encrypted_layer_is_refused_and_audited(formats: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    """Check fails at the encrypted layer and leaves one audit line with image, pod and reason."""
    request = keys_pb2.CheckRequest(use=keys_pb2.Use(image="registry/a:1", pod="default/p"))
    request.layers.add(digest="sha256:11", media_type="application/vnd.oci.image.layer.v1.tar")
    request.layers.add(
        digest=DIGEST, media_type="application/vnd.oci.image.layer.v1.tar+encrypted", annotations=annotations("jwe")
    )
    with caplog.at_level(logging.WARNING), pytest.raises(FailedPrecondition, match=DIGEST):
        Keys(ring(formats, "pkcs8.pem")).Check(request, None)  # type: ignore[arg-type]
    (line,) = [record for record in caplog.records if record.name == "decryptor.audit"]

    assert vars(line)["image"] == "registry/a:1"
    assert vars(line)["pod"] == "default/p"


def test_decryption_can_be_switched_off(formats: dict[str, bytes]) -> None:
    """With an empty key_model the refusal says that decryption is off."""
    layer = keys_pb2.Layer(digest=DIGEST, media_type="a+encrypted")
    with pytest.raises(FailedPrecondition, match="key_model"):
        Keys(Keyring([]), enabled=False).Check(keys_pb2.CheckRequest(layers=[layer]), None)  # type: ignore[arg-type]


def test_one_bad_file_disables_itself_alone(formats: dict[str, bytes]) -> None:
    """ListKeys shows the good key with its fingerprint and the bad file with its error."""
    servicer = Keys(ring(formats, "junk", "pkcs8.pem"))
    good_and_bad = {key.file: key for key in servicer.ListKeys(keys_pb2.ListKeysRequest(), None).keys}  # type: ignore[arg-type]

    assert good_and_bad["pkcs8.pem"].fingerprint
    assert not good_and_bad["pkcs8.pem"].error
    assert "not a key" in good_and_bad["junk"].error
