"""Encrypted images: the decryptor says whether the node has the keys, every time, whatever lies on disk already."""

from collections.abc import Iterable
from pathlib import Path

from bulkhead import paths, rpc
from bulkhead.errors import FailedPrecondition
from bulkhead.proto import keys_pb2
from bulkhead.proto.keys_pb2_grpc import KeysStub
from image_svc import media
from image_svc.patience import Patience
from image_svc.store import Layer

#: Longest wait for the decryptor, seconds.
TIMEOUT = 10.0


class Gatekeeper:
    """Asks the decryptor before an encrypted image is pulled or run."""

    def __init__(self, state: Path, key_model: str) -> None:
        self._stub = KeysStub(rpc.channel(str(paths.service_socket(state, "decryptor"))))
        self._key_model = key_model

    def check(self, image: str, pod: str, layers: Iterable[Layer], patience: Patience | None = None) -> None:
        """Raise the decryptor's verdict unless it has a key for every encrypted layer.

        With an empty `key_model` nothing is asked: decryption is switched off on this node.
        """
        locked = [layer for layer in layers if media.is_encrypted(layer.media_type)]
        if not locked:
            return
        if not self._key_model:
            text = f"{image}: layer {locked[0].digest} is encrypted and image_decryption.key_model is empty"
            raise FailedPrecondition(text)
        request = keys_pb2.CheckRequest(
            use=keys_pb2.Use(image=image, pod=pod),
            layers=[
                keys_pb2.Layer(digest=each.digest, media_type=each.media_type, annotations=each.annotations)
                for each in locked
            ],
        )
        timeout = min(TIMEOUT, patience.left) if patience else TIMEOUT
        rpc.call(self._stub.Check, request, service="decryptor", timeout=timeout)
