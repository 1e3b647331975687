"""JSON Web Encryption (RFC 7516) as ocicrypt writes it: JSON serialisation, one or several recipients.

With several recipients go-jose adds a stray top-level `encrypted_key`; jwcrypto looks at `recipients` alone then.
"""

import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwcrypto import jwk
from jwcrypto.jwe import JWE

from bulkhead.errors import InvalidArgument
from decryptor.recognise import PrivateKey

KEY_ALGORITHMS = ("RSA-OAEP", "RSA-OAEP-256", "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW")
CONTENT_ALGORITHMS = ("A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A192CBC-HS384", "A256CBC-HS512")
#: Direct agreement has no wrapped key; go-jose writes it for one recipient and reads it.
_ALLOWED = [*KEY_ALGORITHMS, "ECDH-ES", *CONTENT_ALGORITHMS]

RECIPIENTS_LIMIT = 256
_PLAIN_LIMIT = 64 * 1024

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class Token:
    """A parsed JWE; parsing once serves all keys. InvalidArgument if it is none."""

    def __init__(self, blob: bytes) -> None:
        try:
            document = json.loads(blob)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument("JWE: not JSON") from error
        if not isinstance(document, dict):
            raise InvalidArgument("JWE: not a JSON object")
        recipients = document.get("recipients", [])
        if not isinstance(recipients, list) or len(recipients) > RECIPIENTS_LIMIT:
            raise InvalidArgument(f"JWE: recipients is not a list of at most {RECIPIENTS_LIMIT}")
        if _has_zip(document):
            # ocicrypt never compresses; a compressed token is a bomb's wrapping.
            raise InvalidArgument("JWE: a compressed payload")
        if "recipients" in document:
            document.pop("encrypted_key", None)
        self._text = json.dumps(document)

    def open(self, key: PrivateKey, made: dict[str, Any] | None = None) -> bytes | None:
        """Return the payload if it is for this key, else None; `made` keeps the library's form of the key."""
        token = JWE(algs=_ALLOWED)
        forms = {} if made is None else made
        try:
            token.deserialize(self._text)
            if "jwk" not in forms:
                forms["jwk"] = jwk.JWK.from_pyca(key)
            token.decrypt(forms["jwk"], max_plaintext=_PLAIN_LIMIT)
        except Exception:  # the library raises whatever its parts do on hostile bytes
            return None
        payload: bytes | None = token.payload
        return payload or None


def _has_zip(document: dict[str, Any]) -> bool:
    """Whether an unprotected header asks for decompression; jwcrypto bounds what a protected one does."""
    heads = [document.get("unprotected"), document.get("header")]
    heads += [each.get("header") for each in document.get("recipients", []) if isinstance(each, dict)]
    return any(isinstance(head, dict) and "zip" in head for head in heads)


def wrap(payload: bytes, recipients: list[tuple[PublicKey, str]]) -> bytes:
    """Return the payload wrapped for public keys, each with the algorithm a JWK named for it or "".

    One recipient's algorithm stands in the protected header, several in their own, as ocicrypt has it.
    """
    chosen = [(jwk.JWK.from_pyca(key), algorithm or _default(key)) for key, algorithm in recipients]
    if len(chosen) == 1:
        key, algorithm = chosen[0]
        token = JWE(payload, protected=json.dumps({"alg": algorithm, "enc": "A256GCM"}), algs=_ALLOWED)
        token.add_recipient(key)
    else:
        token = JWE(payload, protected=json.dumps({"enc": "A256GCM"}), algs=_ALLOWED)
        for key, algorithm in chosen:
            token.add_recipient(key, header=json.dumps({"alg": algorithm}))
    text: str = token.serialize(compact=False)
    return text.encode()


def _default(key: PublicKey) -> str:
    return "RSA-OAEP" if isinstance(key, rsa.RSAPublicKey) else "ECDH-ES+A256KW"
