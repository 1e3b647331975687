"""Verifiers in a directory, called as containerd's "bindir" plugin calls them (pkg/imageverifier/bindir).

They run as image-svc's own user, without any privilege. A directory that is not there lets every image pass; one that
cannot be read, and a verifier that cannot be run or does not end, lets none.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from bulkhead import command
from bulkhead.config.model import ImageVerifier
from bulkhead.errors import BulkheadError
from image_svc import quote
from image_svc.kubelet_errors import SignatureValidationFailed
from image_svc.patience import Patience
from image_svc.registry.repository import Descriptor

logger = logging.getLogger(__name__)

DESCRIPTOR_TYPE = "application/vnd.oci.descriptor.v1+json"
#: Bytes of a verifier's words that are kept (containerd's outputLimitBytes), and at which it is killed.
KEPT, OUTPUT_LIMIT = 1 << 15, 1 << 20
#: Characters of them in an error, which must fit gRPC's headers.
QUOTED = 1000


@dataclass(frozen=True)
class Policy:
    """The verifiers as they are now; equal as long as none was added, removed or replaced."""

    directory: Path
    #: Programs to be asked, by name in order.
    programs: tuple[str, ...]
    #: Identity and age of the directory and of each program.
    stamps: tuple[tuple[int, ...], ...]


def read(config: ImageVerifier) -> Policy | None:
    """Return the verifiers of the configured directory; None for a directory that is not there.

    SignatureValidationFailed for one that cannot be read.
    """
    directory = Path(config.bin_dir)
    try:
        found = sorted(os.listdir(directory)) if config.bin_dir else None
        stamps = [_stamp(directory / name) for name in found or ()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SignatureValidationFailed(f"image verifiers of {directory}: {error.strerror}") from error
    if found is None:
        return None
    asked = found if config.max_verifiers < 0 else found[: config.max_verifiers]
    if len(asked) < len(found):
        logger.warning("%s holds %d verifiers, of which the first %d are asked", directory, len(found), len(asked))
    return Policy(directory, tuple(asked), (_stamp(directory), *stamps))


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; a link that leads nowhere is found out when it is run."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def verify(policy: Policy, name: str, target: Descriptor, timeout: float, patience: Patience) -> str:
    """Ask every verifier about an image; return their reasons, or raise SignatureValidationFailed at the first no."""
    return ", ".join(
        f"{program} => {_ask(policy.directory / program, name, target, timeout, patience)}"
        for program in policy.programs
    )


def _ask(program: Path, name: str, target: Descriptor, timeout: float, patience: Patience) -> str:
    patience.check()
    image = f"image {name} with digest {target.digest}"
    descriptor = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    arguments = ["-name", name, "-digest", target.digest, "-stdin-media-type", DESCRIPTOR_TYPE]
    try:
        result = command.run(
            [str(program), *arguments],
            timeout=min(timeout, patience.left),
            input=json.dumps(descriptor).encode() + b"\n",
            limit=OUTPUT_LIMIT,
        )
    except (BulkheadError, OSError) as error:
        patience.check()
        raise SignatureValidationFailed(f"{image} could not be verified: {program.name}: {error}") from error
    for line in result.stderr[:KEPT].decode(errors="replace").splitlines():
        logger.debug("image verifier %s: %s", program.name, line)
    words = result.stdout[:KEPT].decode(errors="replace").strip()
    if len(result.stdout) > KEPT:
        words += "(stdout truncated)"
    quoted = quote.one_line(words)
    quoted = quoted if len(quoted) <= QUOTED else f"{quoted[:QUOTED]}…"
    if result.returncode < 0:
        signal = -result.returncode
        raise SignatureValidationFailed(f"{image} could not be verified: {program.name} was killed by signal {signal}")
    if result.returncode:
        status = result.returncode
        raise SignatureValidationFailed(f"verifier {program.name} rejected {image} (exit code {status}): {quoted}")
    return quoted
