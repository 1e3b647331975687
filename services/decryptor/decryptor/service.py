"""The Keys service."""

import logging

import grpc
from prometheus_client import Counter

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import keys_pb2, keys_pb2_grpc
from decryptor import verdict
from decryptor.keyring import Keyring

audit = logging.getLogger("decryptor.audit")

CHECKS = Counter("bulkhead_decryptor_checks_total", "Images checked, by verdict: plain, refused.", ["verdict"])


class Keys(keys_pb2_grpc.KeysServicer):
    """Answers what is loaded and what may be decrypted; no message carries a key."""

    def __init__(self, keyring: Keyring, *, enabled: bool = True) -> None:
        self._keyring, self._enabled = keyring, enabled

    def ListKeys(self, request: keys_pb2.ListKeysRequest, context: grpc.ServicerContext) -> keys_pb2.ListKeysResponse:
        """Return every key file with kind and fingerprint, or with its error."""
        return keys_pb2.ListKeysResponse(
            keys=[
                keys_pb2.Key(
                    file=entry.file, kind=entry.key.kind, fingerprint=entry.key.fingerprint, error=entry.key.error
                )
                for entry in self._keyring.entries
            ]
        )

    def Check(self, request: keys_pb2.CheckRequest, context: grpc.ServicerContext) -> keys_pb2.CheckResponse:
        """Refuse (FailedPrecondition) at the first encrypted layer; an image of plain layers passes."""
        for layer in request.layers:
            if verdict.is_encrypted(layer.media_type, layer.annotations):
                self._refuse(request, layer)
        CHECKS.labels("plain").inc()
        return keys_pb2.CheckResponse()

    def _refuse(self, request: keys_pb2.CheckRequest, layer: keys_pb2.Layer) -> None:
        if self._enabled:
            reason = verdict.refusal(layer.digest, layer.annotations, self._keyring)
        else:
            reason = (
                f"layer {verdict.shown(layer.digest)} is encrypted, and decryption is switched off "
                '(image_decryption.key_model is "")'
            )
        CHECKS.labels("refused").inc()
        audit.warning(
            "refused",
            extra={
                "image": verdict.shown(request.use.image),
                "pod": verdict.shown(request.use.pod),
                "layer": verdict.shown(layer.digest),
                "reason": reason,
            },
        )
        raise FailedPrecondition(reason)
