"""A layer's annotations: read as Go writes them, refused by name when they are not that, and written the same way."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from decryptor import options
from decryptor.options import PREFIX, PUBLIC, WRAPPED, Private

KEY, NONCE, MAC = bytes(range(32)), bytes(range(100, 116)), b"m" * 32
DIGEST = "sha256:" + "cd" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def public(**changes: Any) -> dict[str, str]:
    members = {"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": b64(MAC), "cipheroptions": {}, **changes}
    return {PUBLIC: b64(json.dumps(members).encode())}


def private(**changes: Any) -> bytes:
    members = {"symkey": b64(KEY), "digest": DIGEST, "cipheroptions": {"nonce": b64(NONCE)}, **changes}
    return json.dumps(members).encode()


def test_options_are_read() -> None:
    """Cipher, MAC, key, nonce and digest come out as they went in."""
    seen = options.public(public())
    opened = options.private(private(), seen)

    assert (seen.cipher, seen.hmac, seen.options) == ("AES_256_CTR_HMAC_SHA256", MAC, {})
    assert (opened.key, opened.nonce, opened.digest) == (KEY, NONCE, DIGEST)


def test_a_public_nonce_wins() -> None:
    """As in ocicrypt, a nonce among the public options is the one."""
    seen = options.public(public(cipheroptions={"nonce": b64(b"p" * 16)}))

    assert options.private(private(), seen).nonce == b"p" * 16


def test_what_is_wrapped_is_what_ocicrypt_wraps() -> None:
    """The private options are written with ocicrypt's names, in its order and without a space: OAEP has little room."""
    written = Private(KEY, NONCE, DIGEST).to_json().decode()

    assert written == (f'{{"symkey":"{b64(KEY)}","digest":"{DIGEST}","cipheroptions":{{"nonce":"{b64(NONCE)}"}}}}')
    assert options.private(written.encode(), options.public(public())) == Private(KEY, NONCE, DIGEST)


def test_public_options_are_written_as_they_are_read() -> None:
    """The annotation of a new MAC reads back as that MAC."""
    assert options.public({PUBLIC: options.to_annotation(MAC)}).hmac == MAC


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({}, "is missing"),
        ({PUBLIC: "***"}, "not standard base64"),
        ({PUBLIC: b64(b"[]")}, "not a JSON object"),
        ({PUBLIC: b64(b"{")}, "not JSON"),
        (public(cipher="ROT13"), "cipher is 'ROT13'"),
        (public(cipher=None), "expected AES_256_CTR_HMAC_SHA256"),
        (public(hmac=""), "hmac has 0 bytes"),
        (public(hmac=b64(b"m" * 31)), "hmac has 31 bytes"),
        (public(hmac=5), "hmac is not a string"),
        (public(cipheroptions=[1]), "cipheroptions is not an object"),
    ],
)
def test_wrong_public_options_say_why(annotations: dict[str, str], message: str) -> None:
    """Every way in which the annotation can be wrong is named; an empty MAC is no MAC that fits."""
    with pytest.raises(InvalidArgument, match=message):
        options.public(annotations)


@pytest.mark.parametrize(
    "changes",
    [{"symkey": b64(KEY[:31])}, {"symkey": None}, {"cipheroptions": {}}, {"cipheroptions": {"nonce": b64(b"n")}}],
)
def test_keys_of_another_length_are_refused(changes: dict[str, Any]) -> None:
    """A key that is not of 32 bytes or a nonce not of 16 is refused, without quoting either."""
    with pytest.raises(InvalidArgument, match="expected 32 and 16") as error:
        options.private(private(**changes), options.public(public()))

    assert b64(KEY[:20])[:20] not in str(error.value)


@pytest.mark.parametrize("digest", ["sha256:short", "md5:" + "0" * 32, 5, "sha256:" + "CD" * 32])
def test_a_private_digest_is_a_digest(digest: object) -> None:
    """What stands for the digest and is none is refused: it would be compared with one."""
    with pytest.raises(InvalidArgument, match="digest"):
        options.private(private(digest=digest), options.public(public()))


def test_copies_added_later_follow_a_comma() -> None:
    """Each part between commas is a copy of its own, scheme by scheme."""
    found = options.wrapped({f"{WRAPPED}jwe": f"{b64(b'one')},{b64(b'two')}", f"{WRAPPED}pgp": b64(b"three")})

    assert [(each.scheme, each.blob) for each in found] == [("jwe", b"one"), ("jwe", b"two"), ("pgp", b"three")]


def test_the_number_of_copies_is_bounded() -> None:
    """A layer with a thousand copies or schemes is refused before a key is tried."""
    with pytest.raises(InvalidArgument, match="256 wrapped keys"):
        options.wrapped({f"{WRAPPED}jwe": ",".join(["AAAA"] * 1000)})
    with pytest.raises(InvalidArgument, match="at most 16"):
        options.wrapped({f"{WRAPPED}provider.{number}": "AAAA" for number in range(17)})


@pytest.mark.parametrize(
    ("media_type", "annotations", "encrypted"),
    [
        ("application/vnd.oci.image.layer.v1.tar+gzip", {}, False),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", {}, True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd+encrypted", {}, True),
        ("application/vnd.oci.image.layer.v1.tar", {f"{WRAPPED}jwe": ""}, True),
        ("application/vnd.oci.image.layer.v1.tar", {f"{PREFIX}pubopts": ""}, False),
    ],
)
def test_what_counts_as_encrypted(media_type: str, annotations: dict[str, str], encrypted: bool) -> None:
    """A layer is encrypted by its type, and by a wrapped key whatever its type says."""
    assert options.is_encrypted(media_type, annotations) is encrypted


NAMES = st.sampled_from([PUBLIC, f"{WRAPPED}jwe", f"{WRAPPED}provider.x", "other"])


@given(st.dictionaries(NAMES, st.text(max_size=60) | st.binary(max_size=60).map(b64), max_size=4))
def test_any_annotations_are_judged(annotations: dict[str, str]) -> None:
    """No annotation raises anything but InvalidArgument."""
    for read in (options.public, options.wrapped):
        try:
            read(annotations)
        except InvalidArgument as error:
            assert str(error).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=40).map(b64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["symkey", "digest", "cipheroptions", "cipher", "hmac"]), JSON))
def test_any_json_is_judged(members: dict[str, Any]) -> None:
    """No JSON in either place raises anything but InvalidArgument."""
    text = json.dumps(members).encode()
    for read in (lambda: options.public({PUBLIC: b64(text)}), lambda: options.private(text, options.public(public()))):
        with contextlib.suppress(InvalidArgument):
            read()
