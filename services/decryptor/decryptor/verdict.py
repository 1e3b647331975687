"""Whether a layer may be decrypted: pure functions from annotations and key kinds to a reason for refusal."""

import re
from collections.abc import Iterable, Mapping

from decryptor.keyring import Keyring
from decryptor.recognise import CERTIFICATE, JWK, PGP, PKCS11, PRIVATE_KEY

WRAPPED = "org.opencontainers.image.enc.keys."
PROVIDER = "provider."
ENCRYPTED_SUFFIX = "+encrypted"

#: For each wrapping scheme the kinds of key that open it, as alternatives of sets that are needed together.
NEEDS: dict[str, tuple[frozenset[str], ...]] = {
    "jwe": (frozenset({PRIVATE_KEY}), frozenset({JWK})),
    "pkcs7": (frozenset({PRIVATE_KEY, CERTIFICATE}), frozenset({JWK, CERTIFICATE})),
    "pgp": (frozenset({PGP}),),
    "pkcs11": (frozenset({PKCS11}),),
}
_PLAIN_NAME = re.compile(r"[0-9A-Za-z._:/+-]{1,128}").fullmatch


def is_encrypted(media_type: str, annotations: Mapping[str, str]) -> bool:
    """Whether the layer says of itself that it is encrypted, by its type or by a wrapped key."""
    return media_type.endswith(ENCRYPTED_SUFFIX) or bool(schemes(annotations))


def schemes(annotations: Iterable[str]) -> list[str]:
    """Return the wrapping schemes that the annotations carry keys for: `jwe`, `provider.<name>`, …, sorted."""
    return sorted(name.removeprefix(WRAPPED) for name in annotations if name.startswith(WRAPPED))


def refusal(digest: str, annotations: Mapping[str, str], keys: Keyring) -> str:
    """Return why the encrypted layer is refused. This version unwraps nothing, so there always is a reason."""
    layer = f"layer {shown(digest)} is encrypted"
    found = schemes(annotations)
    if not found:
        return f"{layer}, but no annotation {WRAPPED}<scheme> carries a wrapped key for it"
    layer += f" (schemes: {', '.join(shown(scheme) for scheme in found)}; keys loaded: {keys.describe()})"
    if any(fits(scheme, set(keys.kinds())) for scheme in found):
        return f"{layer}: a key of a fitting kind is loaded, but this version of Bulkhead cannot decrypt layers yet"
    return f"{layer}: no loaded key fits: {'; '.join(want(scheme) for scheme in found)}"


def fits(scheme: str, kinds: set[str]) -> bool:
    """Whether keys of these kinds could open that scheme."""
    return any(needed <= kinds for needed in NEEDS.get(scheme, ()))


def want(scheme: str) -> str:
    """Return in words what a scheme needs."""
    if scheme.startswith(PROVIDER):
        return (
            f"{shown(scheme)} needs the key provider {shown(scheme.removeprefix(PROVIDER))!r}, and none is configured"
        )
    if scheme not in NEEDS:
        return f"{shown(scheme)} is not a known scheme"
    return f"{scheme} needs " + " or ".join(" and ".join(sorted(needed, reverse=True)) for needed in NEEDS[scheme])


def shown(name: str) -> str:
    """Return a name from an image as it may stand in an error or a log: plain characters, 128 of them at most."""
    return name if _PLAIN_NAME(name) else ascii(name[:128])
