"""Wrapping schemes: what one end wraps the other opens, no other key does, and no bytes do any harm."""

import base64
import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pysequoia
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwcrypto import jwk
from jwcrypto.jwe import JWE

from bulkhead.errors import DeadlineExceeded, InvalidArgument
from decryptor.deadline import Deadline
from decryptor.schemes import der, jwe, pgp, pgp_module, pkcs7

PAYLOAD = b'{"symkey":"' + b"A" * 170 + b'"}'
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def go_jose(token: bytes) -> dict[str, Any]:
    """Return a token with the member that go-jose adds beside several recipients."""
    document: dict[str, Any] = json.loads(token)
    return {**document, "encrypted_key": document["recipients"][0]["encrypted_key"]}


@pytest.mark.parametrize("algorithm", ["", "RSA-OAEP", "RSA-OAEP-256"])
def test_jwe_for_rsa(rsa_key: rsa.RSAPrivateKey, algorithm: str) -> None:
    """A token for one RSA key is flattened with its algorithm protected, RSA-OAEP unless a JWK says otherwise."""
    token = jwe.wrap(PAYLOAD, [(rsa_key.public_key(), algorithm)])
    document = json.loads(token)
    head = json.loads(base64.urlsafe_b64decode(document["protected"] + "=="))

    assert head == {"alg": algorithm or "RSA-OAEP", "enc": "A256GCM"}
    assert "recipients" not in document
    assert jwe.Token(token).open(rsa_key) == PAYLOAD


@pytest.mark.parametrize("algorithm", ["", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW"])
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_jwe_for_ec(curve: ec.EllipticCurve, algorithm: str) -> None:
    """Tokens for EC keys of every curve open with every agreement listed."""
    key = ec.generate_private_key(curve)

    assert jwe.Token(jwe.wrap(PAYLOAD, [(key.public_key(), algorithm)])).open(key) == PAYLOAD


@pytest.mark.parametrize(
    "content", ["A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512"]
)
def test_jwe_with_every_content_encryption(rsa_key: rsa.RSAPrivateKey, content: str) -> None:
    """Whatever of RFC 7518 the payload is encrypted with is read."""
    token = JWE(PAYLOAD, protected=json.dumps({"alg": "RSA-OAEP", "enc": content}))
    token.add_recipient(jwk.JWK.from_pyca(rsa_key.public_key()))

    assert jwe.Token(token.serialize().encode()).open(rsa_key) == PAYLOAD


def test_jwe_for_several(rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey) -> None:
    """Each of several recipients opens the token, go-jose's stray member or not, and nobody else does."""
    token = jwe.wrap(PAYLOAD, [(rsa_key.public_key(), ""), (ec_key.public_key(), "")])
    stranger = ec.generate_private_key(ec.SECP256R1())
    for text in (token, json.dumps(go_jose(token)).encode()):
        assert [jwe.Token(text).open(key) for key in (rsa_key, ec_key, stranger)] == [PAYLOAD, PAYLOAD, None]


@pytest.mark.parametrize("algorithm", ["RSA1_5", "dir", "PBES2-HS256+A128KW", "A128KW"])
def test_other_algorithms_are_refused(rsa_key: rsa.RSAPrivateKey, algorithm: str) -> None:
    """A token that asks for an algorithm that ocicrypt never writes is not opened."""
    document = json.loads(jwe.wrap(PAYLOAD, [(rsa_key.public_key(), "")]))
    head = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "enc": "A256GCM"}).encode()).decode().rstrip("=")

    assert jwe.Token(json.dumps({**document, "protected": head}).encode()).open(rsa_key) is None


def test_a_compressed_token_is_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    """A header that asks for decompression is refused, protected or not."""
    document = json.loads(jwe.wrap(PAYLOAD, [(rsa_key.public_key(), "")]))
    with pytest.raises(InvalidArgument, match="compressed"):
        jwe.Token(json.dumps({**document, "unprotected": {"zip": "DEF"}}).encode())
    bomb = JWE(b"\0" * 10_000_000, protected=json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF"}))
    bomb.add_recipient(jwk.JWK.from_pyca(rsa_key.public_key()))

    assert jwe.Token(bomb.serialize().encode()).open(rsa_key) is None


@SLOW
@given(data=st.data())
def test_a_changed_token_opens_for_nobody(rsa_key: rsa.RSAPrivateKey, data: st.DataObject) -> None:
    """Whatever byte is changed, the payload does not come out changed, and nothing raises but InvalidArgument."""
    token = bytearray(jwe.wrap(PAYLOAD, [(rsa_key.public_key(), "")]))
    token[data.draw(st.integers(0, len(token) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = jwe.Token(bytes(token)).open(rsa_key)
    except InvalidArgument:
        return
    assert found in (None, PAYLOAD)


@SLOW
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_no_token(rsa_key: rsa.RSAPrivateKey, blob: bytes) -> None:
    """Arbitrary bytes are refused as no JWE, or open for nobody."""
    with contextlib.suppress(InvalidArgument):
        assert jwe.Token(blob).open(rsa_key) is None


MEMBERS = st.sampled_from(["protected", "unprotected", "recipients", "header", "encrypted_key", "iv", "tag", "aad"])
VALUES = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.dictionaries(MEMBERS, st.text(max_size=9)))


@SLOW
@given(st.dictionaries(MEMBERS, VALUES))
def test_any_object_is_no_token(rsa_key: rsa.RSAPrivateKey, members: dict[str, Any]) -> None:
    """JSON objects with a token's members and anything in them open for nobody."""
    with contextlib.suppress(InvalidArgument):
        assert jwe.Token(json.dumps(members).encode()).open(rsa_key) is None


def newer(envelope: bytes) -> bytes:
    """Return an envelope in the form of smallstep's pkcs7: encryptedContent is [0] primitive."""
    outer, _ = der.read(envelope)
    data = outer.parts[1].parts[0]
    version, recipients, content = data.parts
    kind, algorithm, body = content.parts
    again = der.write(der.SEQUENCE, kind.raw, algorithm.raw, der.write(0x80, body.parts[0].content))
    rebuilt = der.write(der.SEQUENCE, version.raw, recipients.raw, again)
    return der.write(der.SEQUENCE, outer.parts[0].raw, der.write(0xA0, rebuilt))


def test_pkcs7_both_ways(rsa_key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> None:
    """An envelope opens for its certificate's key in either writer's form, and not for another key."""
    envelope = pkcs7.wrap(PAYLOAD, [certificate])
    for form in (envelope, newer(envelope)):
        parsed = pkcs7.Envelope(form)

        assert parsed.is_for(certificate)
        assert parsed.open(rsa_key, certificate) == PAYLOAD
        assert parsed.open(rsa.generate_private_key(65537, 2048), certificate) is None


def test_pkcs7_has_the_odd_parameters(certificate: x509.Certificate) -> None:
    """The algorithm's parameters are the primitive SEQUENCE around a nonce tagged [4] and the tag's length 16."""
    outer, _ = der.read(pkcs7.wrap(PAYLOAD, [certificate]))
    algorithm = outer.parts[1].parts[0].parts[2].parts[1]
    odd = algorithm.parts[1]

    assert odd.tag == 0x10
    assert [(part.tag, len(part.content)) for part in odd.parts[0].parts] == [(0x84, 12), (0x02, 1)]
    assert odd.parts[0].parts[1].integer == 16


def test_pkcs7_takes_rsa_certificates_only(ec_key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """A certificate with an EC key cannot be a recipient, in words."""
    builder = x509.CertificateBuilder(
        certificate.issuer,
        certificate.subject,
        ec_key.public_key(),
        5,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )
    from cryptography.hazmat.primitives import hashes

    with pytest.raises(InvalidArgument, match="not RSA"):
        pkcs7.wrap(PAYLOAD, [builder.sign(ec_key, hashes.SHA256())])


@SLOW
@given(data=st.data())
def test_a_changed_envelope_does_no_harm(
    rsa_key: rsa.RSAPrivateKey, certificate: x509.Certificate, data: st.DataObject
) -> None:
    """Whatever byte of an envelope is changed or cut, the payload comes out unchanged or not at all."""
    envelope = bytearray(pkcs7.wrap(PAYLOAD, [certificate]))
    envelope[data.draw(st.integers(0, len(envelope) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = pkcs7.Envelope(bytes(envelope[: data.draw(st.integers(1, len(envelope)))])).open(rsa_key, certificate)
    except InvalidArgument:
        return
    assert found in (None, PAYLOAD)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_envelope(blob: bytes) -> None:
    """Arbitrary bytes are refused."""
    with pytest.raises(InvalidArgument):
        pkcs7.Envelope(blob)


@given(st.lists(st.integers(0, 2), max_size=400))
def test_deeply_nested_der_ends(shape: list[int]) -> None:
    """Nesting of any depth is walked or refused, never a crash."""
    data = b"\x05\x00"
    for kind in shape:
        data = der.write((0x30, 0xA0, 0x31)[kind], data)
    with pytest.raises(InvalidArgument):
        pkcs7.Envelope(data)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 65535, 65536])
def test_der_lengths(size: int) -> None:
    """An element of any size reads back, and what follows it is left."""
    element, rest = der.read(der.write(der.OCTET_STRING, b"x" * size) + b"rest")

    assert (len(element.content), rest) == (size, b"rest")


class Here:
    """A helper that does in this process what the program that reads OpenPGP messages does in its own."""

    def run(self, args: Sequence[str], *, input: bytes, timeout: float, env: Mapping[str, str] | None = None) -> bytes:
        assert args[-1] == "decryptor.schemes.pgp_module"
        return json.dumps({"data": pgp_module.opened(json.loads(input))}).encode()


def opened(secret: pgp.Secret, message: bytes) -> bytes | None:
    helper: Any = Here()
    return pgp.unwrap(secret, message, helper, Deadline(60, "a test"))


def test_openpgp_messages_that_are_read_at_one_time() -> None:
    """However many images ask at once, no more readers than bounded fill their memory; who waits in vain is told."""

    class Slow:
        now = most = 0
        go, full, lock = threading.Event(), threading.Event(), threading.Lock()

        def run(self, args: Sequence[str], *, input: bytes, timeout: float) -> bytes:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
                if self.now == pgp.READERS:
                    self.full.set()
            assert self.go.wait(timeout)
            with self.lock:
                self.now -= 1
            return b'{"data": null}'

    slow: Any = Slow()
    secret = pgp.Secret("ab")
    with ThreadPoolExecutor(3 * pgp.READERS) as pool:
        asked = [pool.submit(pgp.unwrap, secret, b"", slow, Deadline(60, "a test")) for _ in range(3 * pgp.READERS)]
        assert slow.full.wait(60)
        with pytest.raises(DeadlineExceeded, match=r"OpenPGP message: .* others were being read"):
            pgp.unwrap(secret, b"", slow, Deadline(60, "a test", each=0.05))
        slow.go.set()
        assert [each.result(60) for each in asked] == [None] * len(asked)
    assert slow.most == pgp.READERS


def test_pgp_both_ways(pgp_key: pysequoia.Tsk) -> None:
    """A message for a key of a ring opens with its secret, found by mail address, user id or fingerprint."""
    ring = bytes(pgp_key.extract_certificate())
    (secret,) = pgp.secrets(bytes(pgp_key), None)
    fingerprint = pgp_key.extract_certificate().fingerprint
    for name in ("node@example.com", "Node <node@example.com>", fingerprint, ""):
        assert opened(secret, pgp.wrap(PAYLOAD, [(ring, name)])) == PAYLOAD


def test_pgp_names_who_is_missing(pgp_key: pysequoia.Tsk) -> None:
    """A recipient that the ring does not hold is an error with its name; so is what is no ring."""
    ring = bytes(pgp_key.extract_certificate())
    with pytest.raises(InvalidArgument, match="0 keys of the ring fit"):
        pgp.wrap(PAYLOAD, [(ring, "other@example.com")])
    with pytest.raises(InvalidArgument, match="not an OpenPGP public key ring"):
        pgp.wrap(PAYLOAD, [(b"hello", "")])


def test_pgp_payloads_are_small(pgp_key: pysequoia.Tsk) -> None:
    """A payload larger than any private options is none."""
    ring = bytes(pgp_key.extract_certificate())
    (secret,) = pgp.secrets(bytes(pgp_key), None)

    assert opened(secret, pgp.wrap(bytes(65537), [(ring, "")])) is None


def test_pgp_for_another_key(pgp_key: pysequoia.Tsk) -> None:
    """A message for another key stays closed."""
    other = bytes(pysequoia.Tsk.generate(user_id="b").extract_certificate())
    (secret,) = pgp.secrets(bytes(pgp_key), None)

    assert opened(secret, pgp.wrap(PAYLOAD, [(other, "")])) is None


@SLOW
@given(data=st.data())
def test_a_changed_message_does_no_harm(pgp_key: pysequoia.Tsk, data: st.DataObject) -> None:
    """Whatever byte of a message is changed or cut, the payload comes out unchanged or not at all."""
    message = bytearray(pgp.wrap(PAYLOAD, [(bytes(pgp_key.extract_certificate()), "")]))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    (secret,) = pgp.secrets(bytes(pgp_key), None)

    assert opened(secret, bytes(message[: data.draw(st.integers(1, len(message)))])) in (None, PAYLOAD)


@SLOW
@given(st.binary(max_size=300))
def test_any_bytes_are_no_message(pgp_key: pysequoia.Tsk, blob: bytes) -> None:
    """Arbitrary bytes are neither a ring nor a message."""
    (secret,) = pgp.secrets(bytes(pgp_key), None)

    assert opened(secret, blob) is None
    assert all(each.error for each in pgp.secrets(blob, b"secret"))


def test_keys_from_recipients_files(rsa_key: rsa.RSAPrivateKey, ec_key: ec.EllipticCurvePrivateKey) -> None:
    """A jwe recipient may be PEM, DER or a JWK, whose algorithm counts; other algorithms are refused."""
    from decryptor import wrap

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = rsa_key.public_key()
    as_jwk = jwk.JWK.from_pyca(public).export_public(as_dict=True)
    for data, algorithm in (
        (public.public_bytes(serialization.Encoding.PEM, form), ""),
        (public.public_bytes(serialization.Encoding.DER, form), ""),
        (json.dumps(as_jwk).encode(), ""),
        (json.dumps({**as_jwk, "alg": "RSA-OAEP-256"}).encode(), "RSA-OAEP-256"),
    ):
        key, named = wrap.public_key(data, "jwe")
        assert (key.public_numbers(), named) == (public.public_numbers(), algorithm)
    for bad in (b"junk", json.dumps({**as_jwk, "alg": "RSA1_5"}).encode()):
        with pytest.raises(InvalidArgument, match="recipient jwe"):
            wrap.public_key(bad, "jwe")
