"""Exit statuses of `bulkhead images`: scripts tell by them what to do next."""

from bulkhead.cli.output import PIPE as PIPE
from bulkhead.errors import (
    AlreadyExists,
    BulkheadError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

DONE, FAILED, USAGE, MISSING, REFUSED, UNAVAILABLE, CONFLICT, FULL, DAMAGED, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    130,
)

TEXT = """exit status:
  0  done
  1  failed in another way, or answered with no
  2  wrong usage, or a name, platform, filter or archive that is malformed
  3  no such image here, or at the registry
  4  refused: credentials, a signature, or who may do it
  5  image-svc or the registry does not answer, or took too long; trying again may help
  6  not in the present state: in use, pinned, name taken, blobs missing, not authorized to decrypt
  7  disk full, or a limit reached
  8  content that is not what its digest says
  130  interrupted
  141  whoever read the output went away before its end"""

_BY_KIND: tuple[tuple[type[BulkheadError], int], ...] = (
    (InvalidArgument, USAGE),
    (NotFound, MISSING),
    (Unauthenticated, REFUSED),
    (PermissionDenied, REFUSED),
    (Unavailable, UNAVAILABLE),
    (DeadlineExceeded, UNAVAILABLE),
    (FailedPrecondition, CONFLICT),
    (AlreadyExists, CONFLICT),
    (ResourceExhausted, FULL),
    (DataLoss, DAMAGED),
    (Cancelled, INTERRUPTED),
)
#: How the CRI's own names for registry and signature failures begin (k8s.io/cri-api, errors); their code is UNKNOWN.
_BY_TEXT = {"SignatureValidationFailed": REFUSED, "RegistryUnavailable": UNAVAILABLE}


def status(error: BulkheadError) -> int:
    """Return the exit status for an error."""
    for begin, found in _BY_TEXT.items():
        if str(error).startswith(begin):
            return found
    return next((found for kind, found in _BY_KIND if isinstance(error, kind)), FAILED)
