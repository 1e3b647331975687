"""An image-svc without its servers, for unit tests."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from bulkhead.config.model import Bulkhead, Config, Images, Registry
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.catalogue import Catalogue
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.ingest import Content
from image_svc.leases import Leases
from image_svc.oci.platforms import Platform
from image_svc.patience import Patience
from image_svc.pulling.layers import LayerPuller
from image_svc.pulling.pull import Puller
from image_svc.registry.registries import Registries
from image_svc.registry.repository import Retry
from image_svc.registry.stream import Rate
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient
from image_svc.upkeep.damage import Damage
from image_svc.upkeep.gc import Collector
from image_svc.upkeep.recovery import Recovery
from support.fake_registry import FakeUnpack

#: Repeats at once, so that a test of that takes no longer; a registry on a busy machine has its time.
QUICK = Retry(rounds=3, first_wait=0.01, longest_wait=2.0, read_timeout=30.0, rate=Rate(1024, 30.0))
#: Calls a second of nothing a stall, too.
IMPATIENT = replace(QUICK, read_timeout=1.0, rate=Rate(1024, 0.3))


@dataclass
class Node:
    """An image-svc without its servers, over a scratch directory."""

    root: Path
    unpack: FakeUnpack = field(default_factory=FakeUnpack)
    registry: Registry = field(default_factory=lambda: Registry(config_path=()))
    options: dict[str, Any] = field(default_factory=dict)
    key_model: str = "node"
    bulkhead: Bulkhead = field(default_factory=Bulkhead)
    retry: Retry = QUICK

    def __post_init__(self) -> None:
        images = Images(registry=self.registry, key_model=self.key_model, **self.options)
        config = Config(root=self.root, state=self.root, images=images, bulkhead=self.bulkhead)
        client = cast(UnpackClient, self.unpack)
        self.content = Content(self.root)
        self.store = Store(self.root / "images.db")
        self.leases = Leases()
        gatekeeper = Gatekeeper(self.root, self.key_model)
        self.layer_puller = LayerPuller(config, self.content, self.store, client, gatekeeper)
        self.puller = Puller(
            Registries(config, retry=self.retry),
            self.content,
            self.layer_puller,
            gatekeeper,
            self.leases,
            host=Platform("linux", "amd64"),
        )
        self.damage = Damage(self.store, self.content, client)
        self.catalogue = Catalogue(self.store, ())
        discard = images.discard_unpacked_layers
        self.recovery = Recovery(self.store, self.content, client)
        self.collector = Collector(self.store, self.content, client, self.leases, discard_unpacked_layers=discard)

    def pull(self, name: str, auth: AuthConfig | None = None, seconds: float = 60.0) -> str:
        """Pull an image within some seconds and return its id."""
        return self.puller.pull(name, auth, Patience(seconds, f"pull of {name}"))

    def close(self) -> None:
        """Close the store."""
        self.store.close()
