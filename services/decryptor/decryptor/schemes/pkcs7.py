"""PKCS#7 EnvelopedData as ocicrypt writes it with fullsailor's and smallstep's pkcs7: close to CMS (RFC 5652, 5084).

RSA PKCS#1 v1.5 key transport and AES-128-GCM. What differs from CMS, and why OpenSSL and cryptography refuse it: the
algorithm's parameters are a primitive SEQUENCE around the real one, whose nonce is tagged [4]; the authentication tag
stands at the end of the ciphertext; encryptedContent is [0] primitive, or (older writers) [0] around an OCTET STRING.
"""

import hmac
import os
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bulkhead.errors import InvalidArgument
from decryptor.schemes import der

_ENVELOPED, _DATA, _RSA = (
    der.oid("1.2.840.113549.1.7.3"),
    der.oid("1.2.840.113549.1.7.1"),
    der.oid("1.2.840.113549.1.1.1"),
)
_AES128_GCM, _AES256_GCM = der.oid("2.16.840.1.101.3.4.1.6"), der.oid("2.16.840.1.101.3.4.1.46")
#: Nothing without authentication: ocicrypt writes AES-128-GCM, and a reader of CBC could be asked what padding is.
_KEY_BYTES = {_AES128_GCM: 16, _AES256_GCM: 32}
_NONCE_TAG = der.CONTEXT | 4
_NONCE, _TAG = 12, 16
RECIPIENTS_LIMIT = 256


@dataclass(frozen=True)
class _Recipient:
    issuer: bytes
    serial: int
    encrypted_key: bytes


class Envelope:
    """A parsed envelope. InvalidArgument if it is none."""

    def __init__(self, blob: bytes) -> None:
        try:
            self._parse(blob)
        except (der.Malformed, IndexError, RecursionError) as error:
            raise InvalidArgument(f"PKCS#7: {error}") from error

    def _parse(self, blob: bytes) -> None:
        outer, _ = der.read(blob)
        if outer.part(0, der.OBJECT).raw != _ENVELOPED:
            raise der.Malformed("not EnvelopedData")
        data = outer.part(1, der.CONTEXT).part(0, der.SEQUENCE)
        recipients = data.part(1, der.SET).parts
        if len(recipients) > RECIPIENTS_LIMIT:
            raise der.Malformed(f"more than {RECIPIENTS_LIMIT} recipients")
        self._recipients = [found for element in recipients if (found := _recipient(element))]
        content = data.part(2, der.SEQUENCE)
        algorithm = content.part(1, der.SEQUENCE)
        self._algorithm = algorithm.part(0, der.OBJECT).raw
        if self._algorithm not in _KEY_BYTES:
            raise der.Malformed("an encryption algorithm other than AES-GCM")
        self._nonce = _nonce(algorithm.parts[1])
        body = content.part(2, der.CONTEXT)
        self._body = b"".join(part.content for part in body.parts) if body.tag & der.CONSTRUCTED else body.content

    def is_for(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate's issuer and serial number name a recipient."""
        return any(_names(recipient, certificate) for recipient in self._recipients)

    def open(self, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bytes | None:
        """Return the payload if it is for this certificate and its key, else None."""
        for recipient in self._recipients:
            if _names(recipient, certificate):
                try:
                    content_key = key.decrypt(recipient.encrypted_key, padding.PKCS1v15())
                except ValueError:
                    continue
                # The library answers a bad padding with random bytes, of a length that need not be the key's.
                if len(content_key) == _KEY_BYTES[self._algorithm] and (payload := self._decrypt(content_key)):
                    return payload
        return None

    def _decrypt(self, key: bytes) -> bytes | None:
        try:
            return AESGCM(key).decrypt(self._nonce, self._body, None)
        except (InvalidTag, ValueError):
            return None


def belongs(key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> bool:
    """Whether the certificate is for that key."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hmac.compare_digest(key.public_key().public_bytes(*form), certificate.public_key().public_bytes(*form))


def wrap(payload: bytes, certificates: list[x509.Certificate]) -> bytes:
    """Return the payload enveloped for certificates, in the older form: readers of both times open it.

    The newer one, encryptedContent as [0] primitive, is not open to what was built before smallstep's pkcs7.
    InvalidArgument for a certificate without an RSA key.
    """
    key, nonce = os.urandom(16), os.urandom(_NONCE)
    recipients = b"".join(_wrap_for(certificate, key) for certificate in certificates)
    inner = der.write(der.SEQUENCE, der.write(_NONCE_TAG, nonce), der.integer(_TAG))
    algorithm = der.write(der.SEQUENCE, _AES128_GCM, der.write(der.SEQUENCE & ~der.CONSTRUCTED, inner))
    sealed = AESGCM(key).encrypt(nonce, payload, None)
    content = der.write(der.CONTEXT | der.CONSTRUCTED, der.write(der.OCTET_STRING, sealed))
    body = der.write(der.SEQUENCE, _DATA, algorithm, content)
    data = der.write(der.SEQUENCE, der.integer(0), der.write(der.SET, recipients), body)
    return der.write(der.SEQUENCE, _ENVELOPED, der.write(der.CONTEXT | der.CONSTRUCTED, data))


def _wrap_for(certificate: x509.Certificate, key: bytes) -> bytes:
    public = certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        raise InvalidArgument("pkcs7 recipient: the certificate's key is not RSA")
    name = der.write(der.SEQUENCE, certificate.issuer.public_bytes(), der.integer(certificate.serial_number))
    return der.write(
        der.SEQUENCE,
        der.integer(0),
        name,
        der.write(der.SEQUENCE, _RSA),
        der.write(der.OCTET_STRING, public.encrypt(key, padding.PKCS1v15())),
    )


def _recipient(element: der.Element) -> _Recipient | None:
    """Return a recipient by issuer and serial number with RSA key transport; None for any other kind."""
    parts = element.parts
    if len(parts) != 4 or parts[1].tag != der.SEQUENCE or len(parts[1].parts) != 2:
        return None
    if not parts[2].parts or parts[2].parts[0].raw != _RSA:
        return None
    issuer, serial = parts[1].parts
    return _Recipient(issuer.raw, serial.integer, parts[3].content)


def _names(recipient: _Recipient, certificate: x509.Certificate) -> bool:
    return recipient.serial == certificate.serial_number and recipient.issuer == certificate.issuer.public_bytes()


def _nonce(parameters: der.Element) -> bytes:
    """Return GCM's nonce out of the odd form, or of the one that RFC 5084 defines."""
    first = parameters.parts[0]
    if first.tag == der.SEQUENCE:
        first = first.parts[0]
    if first.tag not in (_NONCE_TAG, der.OCTET_STRING) or not 8 <= len(first.content) <= 128:
        raise der.Malformed("no nonce in the algorithm's parameters")
    return first.content
