"""What stands in a layer's annotations: the public options, and the private ones that every scheme wraps (ocicrypt).

Both are JSON as Go writes it: byte slices are padded standard base64, unknown members are ignored, a missing one is the
empty value. Everything here comes from an image and is hostile.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bulkhead.errors import InvalidArgument

PREFIX = "org.opencontainers.image.enc."
WRAPPED = f"{PREFIX}keys."
PUBLIC = f"{PREFIX}pubopts"
ENCRYPTED_SUFFIX = "+encrypted"
#: The only cipher there is (spec.md of ocicrypt).
CIPHER = "AES_256_CTR_HMAC_SHA256"
KEY_BYTES, NONCE_BYTES, MAC_BYTES = 32, 16, 32

#: Bounds on what one layer may make this process look at. ocicrypt has none; a recipient takes 1 or 2 KiB.
BLOB_LIMIT, BLOBS_LIMIT, SCHEMES_LIMIT = 256 * 1024, 256, 16

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}").fullmatch


@dataclass(frozen=True)
class Wrapped:
    """One wrapped copy of a layer's private options. scheme is `jwe`, `pkcs7`, `pgp`, `pkcs11` or `provider.<name>`."""

    scheme: str
    blob: bytes


@dataclass(frozen=True)
class Public:
    """The public options: the cipher, the expected MAC over the ciphertext, and options such as a nonce."""

    cipher: str
    hmac: bytes
    options: dict[str, bytes]


@dataclass(frozen=True)
class Private:
    """The private options. Neither key nor nonce shows in repr; digest is that of the plain compressed layer, or ""."""

    key: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    digest: str

    def to_json(self) -> bytes:
        """Return the JSON that is wrapped for each recipient, its members in ocicrypt's order.

        Without a space: with SHA-256, OAEP under a 2048 bit key has room for 190 bytes.
        """
        members = {
            "symkey": encode(self.key),
            "digest": self.digest,
            "cipheroptions": {"nonce": encode(self.nonce)},
        }
        return json.dumps(members, separators=(",", ":")).encode()


def is_encrypted(media_type: str, annotations: Mapping[str, str]) -> bool:
    """Whether the layer says of itself that it is encrypted, by its type or by a wrapped key."""
    return media_type.endswith(ENCRYPTED_SUFFIX) or any(name.startswith(WRAPPED) for name in annotations)


def schemes(annotations: Mapping[str, str]) -> list[str]:
    """Return the wrapping schemes that the annotations carry keys for: `jwe`, `provider.<name>`, …, sorted."""
    return sorted(
        name.removeprefix(WRAPPED) for name, value in annotations.items() if name.startswith(WRAPPED) and value
    )


def wrapped(annotations: Mapping[str, str]) -> list[Wrapped]:
    """Return every wrapped copy, scheme by scheme; InvalidArgument names an annotation that is not base64 or too large.

    Recipients that were added later stand after a comma, each in base64 of its own.
    """
    found: list[Wrapped] = []
    offered = schemes(annotations)
    if len(offered) > SCHEMES_LIMIT:
        raise InvalidArgument(f"{len(offered)} wrapping schemes on one layer, at most {SCHEMES_LIMIT}")
    for scheme in offered:
        for text in annotations[WRAPPED + scheme].split(","):
            found.append(Wrapped(scheme, decode(text, f"annotation {WRAPPED + scheme!a}")))
            if len(found) > BLOBS_LIMIT:
                raise InvalidArgument(f"more than {BLOBS_LIMIT} wrapped keys on one layer")
    return found


def decode(text: str, what: str) -> bytes:
    """Return the bytes of padded standard base64, at most BLOB_LIMIT; InvalidArgument names `what`.

    Go's decoder skips line ends, and so does this.
    """
    if len(text) > BLOB_LIMIT * 4 // 3 + 4:
        raise InvalidArgument(f"{what} is longer than {BLOB_LIMIT} bytes")
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise InvalidArgument(f"{what} is not standard base64") from error


def encode(data: bytes) -> str:
    """Return padded standard base64, as Go writes a byte slice into JSON."""
    return base64.b64encode(data).decode()


def public(annotations: Mapping[str, str]) -> Public:
    """Return the public options; InvalidArgument says what is wrong with them."""
    text = annotations.get(PUBLIC, "")
    if not text:
        raise InvalidArgument(f"annotation {PUBLIC} is missing: no cipher and no MAC to check the layer by")
    members = _members(decode(text, f"annotation {PUBLIC}"), f"annotation {PUBLIC}")
    cipher = members.get("cipher")
    if cipher != CIPHER:
        raise InvalidArgument(f"annotation {PUBLIC}: cipher is {ascii(cipher)[:64]}, expected {CIPHER}")
    mac = _bytes(members, "hmac", f"annotation {PUBLIC}")
    if len(mac) != MAC_BYTES:
        raise InvalidArgument(f"annotation {PUBLIC}: hmac has {len(mac)} bytes, expected {MAC_BYTES}")
    return Public(cipher, mac, _options(members, f"annotation {PUBLIC}"))


def private(data: bytes, seen: Public) -> Private:
    """Return the private options out of what a scheme unwrapped; InvalidArgument never quotes it.

    A nonce among the public options wins, as in ocicrypt.
    """
    what = "unwrapped private options"
    members = _members(data, what)
    key = _bytes(members, "symkey", what)
    nonce = seen.options.get("nonce") or _options(members, what).get("nonce", b"")
    digest = members.get("digest") or ""
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise InvalidArgument(
            f"{what}: key of {len(key)} and nonce of {len(nonce)} bytes, expected {KEY_BYTES} and {NONCE_BYTES}"
        )
    if digest and not (isinstance(digest, str) and _DIGEST(digest)):
        raise InvalidArgument(f"{what}: digest is not sha256:<64 hex digits>")
    return Private(key, nonce, digest)


def to_annotation(mac: bytes) -> str:
    """Return the value of the public options' annotation for a ciphertext with that MAC."""
    members = {"cipher": CIPHER, "hmac": encode(mac), "cipheroptions": {}}
    return encode(json.dumps(members, separators=(",", ":")).encode())


def _members(data: bytes, what: str) -> dict[str, Any]:
    try:
        members = json.loads(data)
    except (ValueError, RecursionError) as error:
        # Not chained: the parser's error carries the document.
        raise InvalidArgument(f"{what}: not JSON ({type(error).__name__})") from None
    if not isinstance(members, dict):
        raise InvalidArgument(f"{what}: not a JSON object")
    return members


def _bytes(members: Mapping[str, Any], name: str, what: str) -> bytes:
    value = members.get(name)
    if value is None:
        return b""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what}: {name} is not a string")
    return decode(value, f"{what}: {name}")


def _options(members: Mapping[str, Any], what: str) -> dict[str, bytes]:
    options = members.get("cipheroptions") or {}
    if not isinstance(options, dict):
        raise InvalidArgument(f"{what}: cipheroptions is not an object")
    return {name: _bytes(options, name, f"{what}: cipheroptions") for name in options if name == "nonce"}
