"""What a refusal says: pure functions from a layer, the keys at hand and what was tried to words."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from decryptor import options
from decryptor.keyring import Keyring
from decryptor.recognise import CERTIFICATE, JWK, PGP, PKCS11, PRIVATE_KEY

#: How every refusal begins, as imgcrypt's CheckAuthorization has it.
REFUSAL = "you are not authorized to use this image"
PROVIDER = "provider."

#: For each wrapping scheme the kinds of key that open it, as alternatives of sets that are needed together.
NEEDS: dict[str, tuple[frozenset[str], ...]] = {
    "jwe": (frozenset({PRIVATE_KEY}), frozenset({JWK})),
    "pkcs7": (frozenset({PRIVATE_KEY, CERTIFICATE}), frozenset({JWK, CERTIFICATE})),
    "pgp": (frozenset({PGP}),),
    "pkcs11": (frozenset({PKCS11}),),
}
#: Keys that were tried and are named in an error.
SHOWN_LIMIT = 16
_PLAIN_NAME = re.compile(r"[0-9A-Za-z._:/+-]{1,128}").fullmatch


def cost(scheme: str) -> int:
    """Return where a scheme comes in the order of trying: in this process, then in a child, then elsewhere."""
    return {"jwe": 0, "pkcs7": 0, "pgp": 1, "pkcs11": 2}.get(scheme, 3)


def label(scheme: str) -> str:
    """Return the scheme as a metric's label, of which there may be few: providers are one."""
    if scheme in NEEDS:
        return scheme
    return "provider" if scheme.startswith(PROVIDER) else "unknown"


def refusal(digest: str, annotations: Mapping[str, str], rings: Sequence[Keyring], attempts: Sequence[object]) -> str:
    """Return why no key opened the layer: schemes, keys loaded, and each key tried with its reason."""
    found = options.schemes(annotations)
    counts = sum((ring.kinds() for ring in rings), Counter[str]())
    loaded = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
    layer = f"layer {shown(digest)} (schemes: {', '.join(map(shown, found))}; keys loaded: {loaded})"
    if not attempts:
        return f"{REFUSAL}: missing private key needed for decryption: {layer}: {'; '.join(map(want, found))}"
    tried = [str(attempt) for attempt in attempts[:SHOWN_LIMIT]]
    if len(attempts) > SHOWN_LIMIT:
        tried.append(f"and {len(attempts) - SHOWN_LIMIT} more")
    missing = [want(scheme) for scheme in found if not any(line.startswith(f"{shown(scheme)}: ") for line in tried)]
    return f"{REFUSAL}: none of the private keys could be used for decryption: {layer}: " + "; ".join(
        [*tried, *missing]
    )


def unwrapped_by_nobody(digest: str) -> str:
    """Return what is said of a layer that is encrypted by its type and carries no wrapped key."""
    return (
        f"{REFUSAL}: layer {shown(digest)} is encrypted, "
        f"but no annotation {options.WRAPPED}<scheme> carries a wrapped key for it"
    )


def malformed(digest: str, reason: str) -> str:
    """Return what is said of a layer whose annotations cannot be read."""
    return f"{REFUSAL}: layer {shown(digest)} is encrypted and cannot be opened: {reason}"


def switched_off(digest: str) -> str:
    """Return what is said of an encrypted layer on a node that decrypts nothing."""
    return (
        f"{REFUSAL}: layer {shown(digest)} is encrypted, and decryption is switched off "
        '(image_decryption.key_model is "")'
    )


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
