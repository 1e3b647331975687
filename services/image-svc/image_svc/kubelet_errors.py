"""Errors that the kubelet knows by the word that their message begins with (k8s.io/cri-api/pkg/errors)."""

from bulkhead.errors import BulkheadError, PermissionDenied, Unavailable, Unknown


class _Word(BulkheadError):
    """Puts the class's name before the message, once; the kubelet looks behind the gRPC code UNKNOWN alone."""

    code = Unknown.code

    def __init__(self, message: str) -> None:
        word = type(self).__name__
        super().__init__(message if message.startswith(f"{word}: ") else f"{word}: {message}")


class RegistryUnavailable(_Word, Unavailable):
    """A registry does not answer, or answers that it cannot."""

    name = "REGISTRY_UNAVAILABLE"


class SignatureValidationFailed(_Word, PermissionDenied):
    """An image that an image verifier refused, or that could not be verified."""

    name = "SIGNATURE_VALIDATION_FAILED"
