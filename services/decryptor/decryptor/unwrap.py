"""Unwrapping a layer's private options: every wrapped copy against every key that could fit, cheapest scheme first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import rsa

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument
from decryptor import options, verdict
from decryptor.deadline import Deadline
from decryptor.keyring import Entry, Keyring
from decryptor.options import Private, Public, Wrapped
from decryptor.recognise import PGP, PKCS11, Key
from decryptor.tools import Tools

#: Keys tried on one layer; each costs a private key operation.
ATTEMPTS_LIMIT = 2048

WITHHELD = "the key policy does not let this pod use it"
NOT_FOR_IT = "not wrapped for this key"


@dataclass(frozen=True)
class Attempt:
    """A key that was tried, and why it did not open the layer."""

    scheme: str
    file: str
    fingerprint: str
    reason: str

    def __str__(self) -> str:
        name = verdict.shown(self.fingerprint) if self.fingerprint else "no fingerprint"
        where = f"{verdict.shown(self.file)} " if self.file else ""
        return f"{verdict.shown(self.scheme)}: {where}({name}): {self.reason}"


@dataclass(frozen=True)
class Unwrapped:
    """An opened layer: by what, and the options in it. What is secret in them does not show in repr."""

    scheme: str
    fingerprint: str
    file: str
    public: Public
    private: Private = field(repr=False)


class Refused(FailedPrecondition):
    """No key opens the layer; carries what was tried."""

    def __init__(self, message: str, attempts: Sequence[Attempt]) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


#: One try: the key it was made with, and a function that returns what came out, None if nothing did.
_Try = tuple[Entry, Callable[[], bytes | None]]


class Unwrapper:
    """Opens layers with one set of keys. `rings` are searched in their order; `withheld` are left alone."""

    def __init__(self, rings: Sequence[Keyring], withheld: frozenset[str], tools: Tools, deadline: Deadline) -> None:
        self._rings, self._withheld, self._tools, self._deadline = rings, withheld, tools, deadline

    def open(self, digest: str, annotations: dict[str, str]) -> Unwrapped:
        """Return the layer's options; Refused names the layer, the schemes it offers and the keys tried."""
        offered = options.schemes(annotations)
        if not offered:
            raise Refused(verdict.unwrapped_by_nobody(digest), ())
        attempts: list[Attempt] = []
        try:
            public = options.public(annotations)
            copies = sorted(options.wrapped(annotations), key=lambda each: verdict.cost(each.scheme))
        except InvalidArgument as error:
            raise Refused(verdict.malformed(digest, str(error)), ()) from error
        for copy in copies:
            try:
                for entry, attempt in self._tries(copy):
                    reason = self._attempt(copy, entry, attempt, public)
                    if isinstance(reason, Unwrapped):
                        return reason
                    attempts.append(Attempt(copy.scheme, entry.file, entry.key.fingerprint, reason))
                    if len(attempts) >= ATTEMPTS_LIMIT:
                        raise Refused(verdict.refusal(digest, annotations, self._rings, attempts), attempts)
            except InvalidArgument as error:  # the copy itself is malformed
                attempts.append(Attempt(copy.scheme, "", "", str(error)))
        raise Refused(verdict.refusal(digest, annotations, self._rings, attempts), attempts)

    def _attempt(
        self, copy: Wrapped, entry: Entry, attempt: Callable[[], bytes | None], public: Public
    ) -> Unwrapped | str:
        self._deadline.check()
        if entry.key.fingerprint in self._withheld:
            return WITHHELD
        try:
            payload = attempt()
            if payload is None:
                return NOT_FOR_IT
            private = options.private(payload, public)
        except BulkheadError as error:
            return str(error)
        return Unwrapped(copy.scheme, entry.key.fingerprint, entry.file, public, private)

    def _tries(self, copy: Wrapped) -> Iterator[_Try]:
        if copy.scheme == "jwe":
            return self._jwe(copy.blob)
        if copy.scheme == "pkcs7":
            return self._pkcs7(copy.blob)
        if copy.scheme == "pgp":
            return self._pgp(copy.blob)
        if copy.scheme == "pkcs11":
            return self._pkcs11(copy.blob)
        return self._provider(copy)

    # Libraries are imported where a layer first needs them: a node that never sees a scheme does not pay for it.

    def _jwe(self, blob: bytes) -> Iterator[_Try]:
        from decryptor.schemes import jwe

        token = jwe.Token(blob)
        for ring in self._rings:
            for entry in ring.private():
                if entry.key.private is not None:
                    yield entry, lambda key=entry.key: token.open(key.private, key.made)  # type: ignore[misc]

    def _pkcs7(self, blob: bytes) -> Iterator[_Try]:
        from decryptor.schemes import pkcs7

        envelope = pkcs7.Envelope(blob)
        keys = [entry for ring in self._rings for entry in ring.private()]
        for certificate_entry in [entry for ring in self._rings for entry in ring.certificates()]:
            certificate = certificate_entry.key.certificate
            assert certificate is not None
            named = envelope.is_for(certificate)
            fitting = [entry for entry in keys if entry.key.fingerprint == certificate_entry.key.fingerprint]
            for entry in fitting:
                private = entry.key.private
                if named and isinstance(private, rsa.RSAPrivateKey):
                    yield entry, lambda p=private, c=certificate: envelope.open(p, c)  # type: ignore[misc]
            if not (named and fitting):
                reason = "the certificate's private key is not loaded" if named else "not a recipient's certificate"
                yield certificate_entry, _failing(reason)

    def _pgp(self, blob: bytes) -> Iterator[_Try]:
        for ring in self._rings:
            for entry in ring.usable(PGP):
                yield entry, lambda entry=entry: self._tools.message(entry.key.other, blob, self._deadline)  # type: ignore[misc]

    def _pkcs11(self, blob: bytes) -> Iterator[_Try]:
        for ring in self._rings:
            for entry in ring.usable(PKCS11):
                yield entry, lambda entry=entry: self._tools.token(entry.key.other, blob, self._deadline)  # type: ignore[misc]

    def _provider(self, copy: Wrapped) -> Iterator[_Try]:
        name = copy.scheme.removeprefix(verdict.PROVIDER)
        if copy.scheme.startswith(verdict.PROVIDER) and name in self._tools.providers:
            entry = Entry("", Key("provider", f"provider:{name}"))
            yield entry, lambda: self._tools.ask(name, copy.blob, self._deadline)


def _failing(reason: str) -> Callable[[], bytes | None]:
    def fail() -> bytes | None:
        raise FailedPrecondition(reason)

    return fail
