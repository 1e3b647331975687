"""What sandbox-svc asks of image-svc: images as something to run, and the pause image pulled when it is missing."""

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bulkhead import metrics, paths, rpc
from bulkhead.errors import BulkheadError, NotFound
from bulkhead.proto import images_pb2, images_pb2_grpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc
from sandbox_svc import plan, service_account

logger = logging.getLogger(__name__)

SERVICE = "image-svc"
#: Seconds: a restart of image-svc is waited for, a pull of the pause image ends well within the kubelet's 4 minutes.
CALL_TIMEOUT, PULL_TIMEOUT = 30.0, 200.0


@dataclass(frozen=True)
class Image:
    """An image that is completely here."""

    id: str
    #: The OCI image config document.
    config: dict[str, Any]
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    chain_id: str
    manifest_digest: str

    @property
    def name(self) -> str:
        """A tag, else a digest reference, else the id."""
        return next(iter((*self.tags, *self.digests)), self.id)


class Images:
    """The client; image-svc may restart at any time, and is told the valid snapshots when it comes back."""

    def __init__(
        self,
        state: Path,
        valid: Callable[[], Mapping[str, bool]],
        snapshots: Path,
        exports: Callable[[str], Path | None] = lambda snapshotter: None,
    ) -> None:
        """Call the image-svc of that state directory, which is told of the `valid` snapshots.

        Each of those says whether it must be there; one that is being made or removed need not.
        `exports` gives the directory of a proxy snapshotter, None for one of Bulkhead's own.
        """
        self._channel = rpc.channel(str(paths.service_socket(state, SERVICE)))
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self._cri = api_pb2_grpc.ImageServiceStub(self._channel)
        self._valid = valid
        #: Where the unpack helper keeps what mounts are made of.
        self._snapshots = snapshots
        self._exports = exports
        self._parsed: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._seen = threading.Event()

    def watch(self) -> None:
        """Begin to tell image-svc, whenever it comes up, which snapshots are valid.

        Not before the records are loaded: every snapshot that is not named may be collected.
        """
        self._channel.subscribe(self._changed, try_to_connect=True)

    @property
    def reachable(self) -> bool:
        """Whether image-svc is connected at present."""
        return self._seen.is_set()

    def close(self) -> None:
        """End the connection."""
        self._channel.unsubscribe(self._changed)
        self._channel.close()

    def resolve(self, reference: str, handler: str = "", named: str = "") -> Image:
        """Find an image by id, digest or name; NotFound if it is not here.

        `named` is the name that the pod's author gave, where `reference` is an id.
        """
        request = images_pb2.ResolveRequest(image=reference, runtime_handler=handler, user_specified_image=named)
        answer = rpc.call(self._images.Resolve, request, service=SERVICE, timeout=CALL_TIMEOUT)
        return Image(
            id=answer.image_id,
            config=self._config(answer.image_id, answer.config_json),
            tags=tuple(answer.repo_tags),
            digests=tuple(answer.repo_digests),
            chain_id=answer.chain_id,
            manifest_digest=answer.manifest_digest,
        )

    def resolve_or_pull(self, reference: str, handler: str, sandbox: cri.PodSandboxConfig) -> Image:
        """Find an image, pulling it if it is not here: the pause image may have been removed by hand."""
        try:
            return self.resolve(reference, handler)
        except NotFound:
            logger.info("pulling the sandbox image %s", reference)
        request = cri.PullImageRequest(
            image=cri.ImageSpec(image=reference, runtime_handler=handler), sandbox_config=sandbox
        )
        with metrics.stage("pause_pull"):
            pulled = rpc.call(self._cri.PullImage, request, service=SERVICE, timeout=PULL_TIMEOUT)
        return self.resolve(pulled.image_ref, handler)

    def prepare(
        self,
        key: str,
        image: Image,
        sandbox: cri.PodSandboxConfig,
        *,
        snapshotter: str,
        grant: str = "",
        mounts: Iterable[cri.Mount] = (),
    ) -> images_pb2.PrepareResponse:
        """Make the snapshot of a container (or return the one that exists) as a plan of mounts.

        `grant` names keys that root lends to this use; the container's service account, by which the key policy may
        decide, is told by its `mounts`. PermissionDenied for a plan that reaches beyond image-svc's snapshots.
        """
        metadata = sandbox.metadata
        request = images_pb2.PrepareRequest(
            key=key,
            image_id=image.id,
            snapshotter=snapshotter,
            pod=f"{metadata.namespace}/{metadata.name}",
            manifest_digest=image.manifest_digest,
            namespace=metadata.namespace,
            service_account=service_account.of(mounts, metadata.namespace),
            pod_labels=sandbox.labels,
            grant=grant,
        )
        with metrics.stage("snapshot_prepare"):
            answer: images_pb2.PrepareResponse = rpc.call(
                self._images.Prepare, request, service=SERVICE, timeout=CALL_TIMEOUT
            )
        root = self._exports(snapshotter)
        if root is None:
            plan.check(answer, self._snapshots)
        else:
            plan.check_foreign(answer, root)
        return answer

    def remove(self, key: str) -> None:
        """Drop a snapshot; an unknown key succeeds."""
        rpc.call(self._images.Remove, images_pb2.RemoveRequest(key=key), service=SERVICE, timeout=CALL_TIMEOUT)

    def retain(self, keys: Iterable[str], as_of: int) -> list[str]:
        """Tell image-svc which snapshots were in use at a time (ns since 1970); returns those that it does not have."""
        request = images_pb2.RetainRequest(keys=keys, as_of=as_of)
        answer = rpc.call(self._images.Retain, request, service=SERVICE, timeout=CALL_TIMEOUT)
        return list(answer.missing)

    def _config(self, ident: str, raw: bytes) -> dict[str, Any]:
        """Parse an image config once: an id is its digest, so the same id is the same document."""
        with self._lock:
            if (known := self._parsed.get(ident)) is not None:
                self._parsed.move_to_end(ident)
                return known
        parsed: dict[str, Any] = json.loads(raw)
        with self._lock:
            self._parsed[ident] = parsed
            while len(self._parsed) > 64:
                self._parsed.popitem(last=False)
        return parsed

    def _changed(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            if not self._seen.is_set():
                self._seen.set()
                threading.Thread(target=self._announce, name="retain", daemon=True).start()
        else:
            self._seen.clear()

    def _announce(self) -> None:
        try:
            now = time.time_ns()
            valid = self._valid()
            missing = self.retain(valid, now)
        except BulkheadError as error:
            logger.warning("image-svc was not told which snapshots are in use: %s", error)
            return
        still = self._valid()
        if lost := [key for key in missing if valid.get(key) and still.get(key)]:
            logger.warning("image-svc does not know %d snapshots in use: %s", len(lost), ", ".join(lost[:5]))
