"""Recipients on the command line, as ocicrypt's programs have them: SCHEME:FILE, pgp:NAME, provider:NAME[:VALUE]."""

import argparse
import os
from pathlib import Path

from bulkhead import command
from bulkhead.errors import InvalidArgument, NotFound, PermissionDenied
from bulkhead.proto import images_pb2 as pb

HELP = (
    "jwe:FILE (public key: PEM, DER, JWK), pkcs7:FILE (certificate), pgp:MAIL, pkcs11:FILE (public key, or ocicrypt's "
    "YAML), provider:NAME[:VALUE]; may be repeated"
)
_FILES = ("jwe", "pkcs7", "pkcs11")
#: Bytes of a recipient's file, and seconds for gpg.
_LIMIT, _TIMEOUT = 2 << 20, 30.0


def add(parser: argparse.ArgumentParser) -> None:
    """Add `--recipient` and `--gpg-homedir`."""
    parser.add_argument(
        "--recipient", action="append", required=True, type=str, default=[], metavar="SCHEME:WHO", help=HELP
    )
    parser.add_argument("--gpg-homedir", default="", metavar="DIRECTORY", help="where gpg has the public keys")


def read(options: argparse.Namespace) -> list[pb.ImageRecipient]:
    """Return the recipients with the bytes of their public keys; InvalidArgument names the one that is none."""
    return [_one(text, options.gpg_homedir) for text in options.recipient]


def _one(text: str, homedir: str) -> pb.ImageRecipient:
    scheme, colon, value = text.partition(":")
    if not colon or not value or scheme not in (*_FILES, "pgp", "provider"):
        raise InvalidArgument(f"--recipient {text!r}: expected SCHEME:WHO with jwe, pkcs7, pgp, pkcs11 or provider")
    if scheme == "provider":
        name, _, parameter = value.partition(":")
        return pb.ImageRecipient(scheme=scheme, name=name, key=parameter.encode())
    if scheme == "pgp":
        return pb.ImageRecipient(scheme=scheme, name=value, key=_ring(homedir))
    return pb.ImageRecipient(scheme=scheme, key=_file(value, text))


def _file(path: str, text: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise NotFound(f"--recipient {text!r}: {error.strerror}") from error
    except PermissionError as error:
        raise PermissionDenied(f"--recipient {text!r}: {error.strerror}") from error
    except OSError as error:
        raise InvalidArgument(f"--recipient {text!r}: {error.strerror}") from error
    if len(data) > _LIMIT:
        raise InvalidArgument(f"--recipient {text!r}: more than {_LIMIT} bytes")
    return data


def _ring(homedir: str) -> bytes:
    """Return the public keys that gpg knows; without gpg those of the ring it once had."""
    place = homedir or os.environ.get("GNUPGHOME") or str(Path.home() / ".gnupg")
    try:
        arguments = ["gpg", "--homedir", place, "--batch", "--quiet", "--export"]
        result = command.run(arguments, timeout=_TIMEOUT, env=dict(os.environ), limit=_LIMIT)
        if not result.returncode and result.stdout:
            return result.stdout
        complaint = result.complaint
    except NotFound as error:
        complaint = str(error)
    ring = Path(place) / "pubring.gpg"
    if ring.is_file():
        return _file(str(ring), f"pgp ({ring})")
    raise NotFound(f"--recipient pgp: no public keys in {place}: {complaint}")
