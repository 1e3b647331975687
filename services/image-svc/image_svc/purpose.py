"""For whom an image is wanted: what the audit of keys says and the key policy decides by."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bulkhead.proto import keys_pb2
from bulkhead.proto.runtime.v1 import api_pb2


@dataclass(frozen=True)
class Purpose:
    """The pod an image is pulled or prepared for; all empty where nobody said."""

    #: "<namespace>/<name>".
    pod: str = ""
    namespace: str = ""
    service_account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    #: A grant of root's at the decryptor (`run --key`), whose keys may be used as well as the node's.
    grant: str = ""
    #: What is not known yet, so that the key policy does not decide by it.
    open: "keys_pb2.Use.Open" = keys_pb2.Use.NOTHING

    @classmethod
    def of(cls, sandbox: api_pb2.PodSandboxConfig) -> "Purpose":
        """Return what the kubelet says with a pull: everything but the service account."""
        metadata = sandbox.metadata
        if not metadata.name:
            return cls()
        pod, labels = f"{metadata.namespace}/{metadata.name}", dict(sandbox.labels)
        return cls(pod, metadata.namespace, labels=labels, open=keys_pb2.Use.SERVICE_ACCOUNT)

    def use(self, image: str) -> keys_pb2.Use:
        """Return it as the decryptor wants to hear it."""
        return keys_pb2.Use(
            image=image,
            pod=self.pod,
            namespace=self.namespace,
            service_account=self.service_account,
            pod_labels=self.labels,
            grant=self.grant,
            open=self.open,
        )
