"""An image-svc with a proxy snapshotter beside its own, without its servers, for unit tests."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from bulkhead.config.model import Config, Images, ProxyPlugin
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.oci.platforms import Platform
from image_svc.patience import Patience
from image_svc.proxied import Proxies
from image_svc.proxied.collect import ProxiedGarbage
from image_svc.proxied.layers import ProxiedLayerPuller
from image_svc.proxied.ready import Ready
from image_svc.pulling.pull import Puller
from image_svc.registry.registries import Registries
from image_svc.snapshotters import Snapshotters
from image_svc.unpack.client import UnpackClient
from image_svc.unpack.protocol import Limits, Unpacked
from image_svc.upkeep.usage import ContainerUsage
from support.fake_registry import FakeUnpack
from support.fake_snapshots import ROOT
from support.image_node import Node
from support.images import Image, digest


class Applying(FakeUnpack):
    """Unpacks into the directories of proxies, too, and keeps what was below each."""

    def __init__(self) -> None:
        super().__init__()
        self.below: dict[str, tuple[str, ...]] = {}

    def apply(
        self,
        snapshotter: str,
        path: str,
        lowers: Sequence[str],
        stream: int,
        limits: Limits,
        algorithm: str = "sha256",
    ) -> Unpacked:
        assert snapshotter == "fake"
        self.below[path] = tuple(lowers)
        return self.unpack(path, stream, limits, algorithm)


class ProxiedNode(Node):
    """An image-svc that knows the snapshotter "fake" beside its own."""

    def join(self, socket: Path) -> "ProxiedNode":
        plugins = {"fake": ProxyPlugin("snapshot", str(socket), {"root": ROOT})}
        images = Images(registry=self.registry, **self.options)
        config = Config(root=self.root, state=self.root, images=images, proxy_plugins=plugins)
        gatekeeper = Gatekeeper(self.root, "node")
        helper = cast(UnpackClient, self.unpack)
        self.proxies = Proxies(plugins)
        self.snapshotters = Snapshotters("overlayfs", self.root, helper, self.store, self.proxies)
        proxied = ProxiedLayerPuller(config, self.store, helper, self.layer_puller, self.proxies)
        self.puller = Puller(
            Registries(config, retry=self.retry),
            self.content,
            self.layer_puller,
            gatekeeper,
            self.leases,
            elsewhere=partial(self.snapshotters.elsewhere, proxied),
            host=Platform("linux", "amd64"),
        )
        self.garbage = ProxiedGarbage(self.store, self.leases, self.proxies)
        self.usage = ContainerUsage(self.store, helper, 1.0, self.proxies)
        self.ready = Ready(self.store, self.content, self.snapshotters, self.puller, 10.0)
        return self

    def pull_there(self, name: str, seconds: float = 60.0) -> str:
        """Pull into the fake."""
        return self.puller.pull(name, None, Patience(seconds, "pull"), snapshotter="fake")


def chain(image: Image) -> list[str]:
    """Return an image's chain ids, by the definition of OCI's image-spec."""
    found: list[str] = []
    for layer in image.layers:
        found.append(digest(f"{found[-1]} {digest(layer)}".encode()) if found else digest(layer))
    return found
