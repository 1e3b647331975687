"""The errors every service speaks, named after the gRPC codes they become at the edge.

BulkheadError
├── InvalidArgument       the request can never work as it is: names the field, the value, what was expected
├── NotFound              no such pod, container, image, ticket
├── AlreadyExists
├── FailedPrecondition    the request is fine, the state of the thing is not
├── PermissionDenied
├── Unauthenticated
├── ResourceExhausted     a limit of ours or of a registry (HTTP 429)
├── DeadlineExceeded
├── Unavailable           a service, registry or plugin does not answer; trying again may help
├── Unimplemented
├── Aborted               lost a race; the caller may try again
├── Unknown               what the kubelet knows by the word that its message begins with, and by nothing else
├── Cancelled
├── DataLoss              bytes are not what their digest says
└── Internal              our bug
"""


class BulkheadError(Exception):
    """An error with a gRPC code (google.rpc.Code, also used by ttrpc) and a message fit for a user."""

    code = 13
    name = "INTERNAL"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.name


class Cancelled(BulkheadError):
    """The caller went away."""

    code, name = 1, "CANCELLED"


class Unknown(BulkheadError):
    """A failure whose message begins with a word of the CRI's (k8s.io/cri-api/pkg/errors), such as RegistryUnavailable.

    The kubelet's client takes the code off a status of this kind alone, and compares how the rest begins.
    """

    code, name = 2, "UNKNOWN"


class InvalidArgument(BulkheadError):
    """The request can never work; the message names the field, the value and what was expected."""

    code, name = 3, "INVALID_ARGUMENT"


class DeadlineExceeded(BulkheadError):
    """A step took longer than it was allowed to; the message names the step and the limit."""

    code, name = 4, "DEADLINE_EXCEEDED"


class NotFound(BulkheadError):
    """There is nothing by that name."""

    code, name = 5, "NOT_FOUND"


class AlreadyExists(BulkheadError):
    """Something else already has that name."""

    code, name = 6, "ALREADY_EXISTS"


class PermissionDenied(BulkheadError):
    """The caller is known and may not do this."""

    code, name = 7, "PERMISSION_DENIED"


class ResourceExhausted(BulkheadError):
    """A limit was reached."""

    code, name = 8, "RESOURCE_EXHAUSTED"


class FailedPrecondition(BulkheadError):
    """The request is sound, but not in the present state."""

    code, name = 9, "FAILED_PRECONDITION"


class Aborted(BulkheadError):
    """The operation lost against another one and may be tried again."""

    code, name = 10, "ABORTED"


class Unimplemented(BulkheadError):
    """Known, and not built yet."""

    code, name = 12, "UNIMPLEMENTED"


class Internal(BulkheadError):
    """Something that should not happen did."""

    code, name = 13, "INTERNAL"


class Unavailable(BulkheadError):
    """Another process does not answer; the message names it."""

    code, name = 14, "UNAVAILABLE"


class DataLoss(BulkheadError):
    """Bytes are not what their digest promised."""

    code, name = 15, "DATA_LOSS"


class Unauthenticated(BulkheadError):
    """A registry wants credentials, or refused those it got."""

    code, name = 16, "UNAUTHENTICATED"


def from_code(code: int, message: str) -> BulkheadError:
    """Return the error of that gRPC code; an unknown code becomes Internal."""
    return _BY_CODE.get(code, Internal)(message)


_BY_CODE = {kind.code: kind for kind in BulkheadError.__subclasses__()}
