"""The Keys service: control over gRPC."""

import grpc

from bulkhead import rpc
from bulkhead.layers import image_bound
from bulkhead.proto import keys_pb2, keys_pb2_grpc
from decryptor.desk import Desk


class Keys(keys_pb2_grpc.KeysServicer):
    """Answers what is loaded and what may be decrypted; no message carries a key."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._bound = desk, image_bound(desk.patience)

    def ListKeys(self, request: keys_pb2.ListKeysRequest, context: grpc.ServicerContext) -> keys_pb2.ListKeysResponse:
        """Return every key with kind and fingerprint, or with its error."""
        return keys_pb2.ListKeysResponse(keys=self._desk.listed())

    @rpc.long_call
    def Check(self, request: keys_pb2.CheckRequest, context: grpc.ServicerContext) -> keys_pb2.CheckResponse:
        """Refuse (FailedPrecondition) at the first encrypted layer that no key opens; plain layers pass."""
        timeout = rpc.remaining(context, self._bound)
        return keys_pb2.CheckResponse(opened=self._desk.check(request.use, request.layers, timeout))
