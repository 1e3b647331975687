"""What the decryptor does for its callers, however they reach it: open layers, seal them, say which keys there are."""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, PermissionDenied
from bulkhead.layers import key_bound
from bulkhead.proto import keys_pb2
from decryptor import options, stream, verdict, wrap
from decryptor.audit import BYTES, Line
from decryptor.cache import Cache, Found
from decryptor.deadline import Deadline
from decryptor.grants import Grants
from decryptor.keyring import Keyring
from decryptor.options import Private
from decryptor.policy import Policy
from decryptor.recognise import PKCS11
from decryptor.tools import Tools
from decryptor.unwrap import Refused, Unwrapped, Unwrapper

logger = logging.getLogger(__name__)


class Desk:
    """The keys of the moment and everything that may be done with them."""

    def __init__(
        self,
        load: Callable[[], Keyring],
        *,
        tools: Tools,
        policy: Policy | None = None,
        remember: float = 0.0,
        enabled: bool = True,
    ) -> None:
        self._load, self._tools, self._enabled = load, tools, enabled
        self._policy, self._cache = policy or Policy(()), Cache(remember)
        self._reloading = threading.Lock()
        self.grants = Grants()
        self.keyring = load()

    @property
    def patience(self) -> float:
        """Seconds that a token or key provider may take for one answer."""
        return self._tools.patience

    def reload(self) -> None:
        """Read keys and providers anew; what was remembered of the old ones is forgotten."""
        with self._reloading:
            self._tools.reload()
            before, self.keyring = self.keyring, self._load()
            self._cache.clear()
            self.keyring.publish(before)
        for complaint in self._tools.complaints:
            logger.warning("%s", complaint)

    def complaints(self) -> list[str]:
        """Return one line for each key file or provider that cannot be used."""
        return [*self.keyring.complaints(), *self._tools.complaints]

    def listed(self) -> list[keys_pb2.Key]:
        """Return every key with kind and fingerprint, or with its error, and the providers after them."""
        keys = [
            keys_pb2.Key(file=each.file, kind=each.key.kind, fingerprint=each.key.fingerprint, error=each.key.error)
            for each in self.keyring.entries
        ]
        providers = [
            keys_pb2.Key(kind="provider", fingerprint=f"provider:{name}", error=each.error)
            for name, each in self._tools.providers.items()
        ]
        return keys + providers

    def check(self, use: keys_pb2.Use, layers: Iterable[keys_pb2.Layer], timeout: float) -> list[keys_pb2.Opened]:
        """Return which key opens each encrypted layer; Refused at the first that none opens."""
        deadline = Deadline(timeout, "unwrapping an image's keys", self.patience)
        return [
            self._check(use, layer, deadline)
            for layer in layers
            if options.is_encrypted(layer.media_type, layer.annotations)
        ]

    def _check(self, use: keys_pb2.Use, layer: keys_pb2.Layer, deadline: Deadline) -> keys_pb2.Opened:
        # The generation first: keys that are taken away while this runs must not be remembered.
        generation, withheld = self._cache.generation, self._policy.withheld(use)
        known = _cache_key(layer.annotations, withheld)
        found = None if use.grant or not self._enabled else self._cache.get(known)
        if found:
            Line("check", use, layer).opened(found.scheme, found.fingerprint, remembered=True)
        else:
            opened = self.open("check", use, layer, deadline)
            found = Found(opened.scheme, opened.fingerprint)
            if not use.grant:
                self._cache.put(known, found, generation)
        return keys_pb2.Opened(digest=layer.digest, scheme=found.scheme, fingerprint=found.fingerprint)

    def open(self, operation: str, use: keys_pb2.Use, layer: keys_pb2.Layer, deadline: Deadline) -> Unwrapped:
        """Return a layer's options, and leave the audit's line; Refused says why no key opens it."""
        line = Line(operation, use, layer)
        try:
            if use.open == keys_pb2.Use.POD and operation != "check":
                raise InvalidArgument("use.open: POD is for checks alone; a layer is decrypted for somebody")
            if not self._enabled:
                raise Refused(verdict.switched_off(layer.digest), ())
            rings, withheld = [self.keyring], self._policy.withheld(use)
            if use.grant:
                granted = self.grants.ring(use.grant)
                rings.insert(0, granted)
                # What root lends for one use is not withheld from it.
                withheld -= {entry.key.fingerprint for entry in granted.entries}
            opened = Unwrapper(rings, withheld, self._tools, deadline).open(layer.digest, dict(layer.annotations))
        except BulkheadError as error:
            tried = [attempt.fingerprint for attempt in error.attempts] if isinstance(error, Refused) else []
            line.refused(str(error), tried)
            raise
        line.opened(opened.scheme, opened.fingerprint)
        return opened

    def _deadline(self, step: str) -> Deadline:
        return Deadline(key_bound(self.patience), step, self.patience)

    def decrypt(
        self, request: keys_pb2.DecryptRequest, ends: stream.Ends, started: Callable[[], None]
    ) -> keys_pb2.DecryptResult:
        """Decrypt one layer; `started` is called once its key was found. Errors as in open() and stream.decrypt()."""
        layer = request.layer
        opened = self.open("decrypt", request.use, layer, self._deadline("unwrapping a layer's key"))
        started()
        try:
            digest, size = stream.decrypt(ends, opened.private, opened.public, diff_id=layer.diff_id)
        except BulkheadError as error:
            raise type(error)(f"layer {verdict.shown(layer.digest)}: {error}") from error
        BYTES.labels("decrypt").inc(size)
        return keys_pb2.DecryptResult(
            digest=digest,
            size=size,
            opened=keys_pb2.Opened(digest=layer.digest, scheme=opened.scheme, fingerprint=opened.fingerprint),
        )

    def encrypt(
        self, request: keys_pb2.EncryptRequest, ends: stream.Ends, started: Callable[[], None], *, by_root: bool = False
    ) -> keys_pb2.EncryptResult:
        """Encrypt one layer under a new key, wrapped for the recipients.

        FailedPrecondition if the bytes are not the layer's, or if it is encrypted already.
        """
        layer = request.layer
        if options.is_encrypted(layer.media_type, layer.annotations):
            raise FailedPrecondition(f"layer {verdict.shown(layer.digest)} is encrypted already; add recipients to it")
        private = Private(os.urandom(options.KEY_BYTES), os.urandom(options.NONCE_BYTES), layer.digest)
        # Before the bytes: a recipient that cannot be one is to fail at once.
        wrapped = self._wrap(private, request.recipients, self._tokens(request.use, by_root=by_root))
        started()
        sealed = stream.encrypt(ends, private)
        if sealed.plain_digest != layer.digest:
            shown = verdict.shown(layer.digest)
            raise FailedPrecondition(f"layer {shown}: the bytes to encrypt are {sealed.plain_digest}")
        BYTES.labels("encrypt").inc(sealed.size)
        return keys_pb2.EncryptResult(
            digest=sealed.digest,
            size=sealed.size,
            media_type=layer.media_type + options.ENCRYPTED_SUFFIX,
            annotations={**wrapped, options.PUBLIC: options.to_annotation(sealed.mac)},
        )

    def add_recipients(self, request: keys_pb2.RecipientsRequest, *, by_root: bool) -> keys_pb2.EncryptResult:
        """Wrap the key of an encrypted layer for more recipients; PermissionDenied for others than root.

        Whoever has a layer key wrapped for a key of his own holds it: image-svc needs a grant that root holds open.
        """
        use, layer = request.use, request.layer
        if not by_root and not use.grant:
            raise PermissionDenied("adding recipients is root's, or takes a grant of root's")
        opened = self.open("recipients", use, layer, self._deadline("unwrapping a layer's key"))
        more = self._wrap(opened.private, request.recipients, self._tokens(use, by_root=by_root))
        return keys_pb2.EncryptResult(
            digest=layer.digest, media_type=layer.media_type, annotations=wrap.merged(layer.annotations, more)
        )

    def _tokens(self, use: keys_pb2.Use, *, by_root: bool) -> list[object] | None:
        """Return the key files of tokens that a caller other than root may name whatever they say; None for root."""
        if by_root:
            return None
        rings = [self.keyring, *([self.grants.ring(use.grant)] if use.grant else [])]
        return [entry.key.other for ring in rings for entry in ring.usable(PKCS11)]

    def _wrap(
        self, private: Private, recipients: Iterable[keys_pb2.Recipient], tokens: Sequence[object] | None
    ) -> dict[str, str]:
        deadline = self._deadline("wrapping a layer's key")
        return wrap.annotations(private.to_json(), recipients, self._tools, deadline, tokens)


def _cache_key(annotations: Mapping[str, str], withheld: frozenset[str]) -> bytes:
    """Return a digest of everything that the answer depends on, beside the keys."""
    hashed = hashlib.sha256()
    for name, value in sorted(annotations.items()):
        hashed.update(f"{len(name)}:{name}{len(value)}:{value}".encode(errors="surrogatepass"))
    hashed.update("\0".join(sorted(withheld)).encode())
    return hashed.digest()
