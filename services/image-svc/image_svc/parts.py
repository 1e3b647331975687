"""What image-svc is made of, put together once."""

from dataclasses import dataclass
from functools import partial

from bulkhead import paths
from bulkhead.config.model import Config
from image_svc.catalogue import Catalogue
from image_svc.decryption.gatekeeper import Gatekeeper
from image_svc.ingest import Content
from image_svc.leases import Leases
from image_svc.proxied import Proxies
from image_svc.proxied.collect import ProxiedGarbage
from image_svc.proxied.layers import ProxiedLayerPuller
from image_svc.proxied.ready import Ready
from image_svc.pulling.layers import LayerPuller
from image_svc.pulling.pull import Puller
from image_svc.registry.registries import Registries
from image_svc.snapshotters import Snapshotters
from image_svc.store import Store
from image_svc.unpack.client import UnpackClient
from image_svc.upkeep.damage import Damage
from image_svc.upkeep.gc import Collector
from image_svc.upkeep.recovery import Recovery
from image_svc.upkeep.usage import ContainerUsage
from image_svc.verify import Gate


@dataclass(frozen=True)
class Parts:
    """The parts of one image-svc, which its two gRPC services share."""

    config: Config
    content: Content
    store: Store
    client: UnpackClient
    leases: Leases
    gatekeeper: Gatekeeper
    snapshotters: Snapshotters
    ready: Ready
    catalogue: Catalogue
    layer_puller: LayerPuller
    puller: Puller
    collector: Collector
    usage: ContainerUsage
    recovery: Recovery
    damage: Damage
    registries: Registries
    #: Image verifiers.
    gate: Gate


def assemble(config: Config, client: UnpackClient) -> Parts:
    """Open the store below the configured root and put everything together; nothing runs yet."""
    content = Content(config.root)
    store = Store(paths.image_records(config.root) / "images.db")
    leases = Leases()
    gatekeeper = Gatekeeper(config.state, config.images.key_model, config)
    proxies = Proxies(config.proxy_plugins)
    snapshotters = Snapshotters(config.images.snapshotter, config.root, client, store, proxies)
    registries = Registries(config)
    gate = Gate(config.image_verifier, content, store)
    damage = Damage(store, content, client)
    layers = LayerPuller(config, content, store, client, gatekeeper)
    proxied = ProxiedLayerPuller(config, store, client, layers, proxies)
    elsewhere = partial(snapshotters.elsewhere, proxied)
    puller = Puller(registries, content, layers, gatekeeper, leases, checks=(gate.pulled,), elsewhere=elsewhere)
    discard = config.images.discard_unpacked_layers
    garbage = ProxiedGarbage(store, leases, proxies)
    return Parts(
        config=config,
        content=content,
        store=store,
        client=client,
        leases=leases,
        gatekeeper=gatekeeper,
        snapshotters=snapshotters,
        ready=Ready(store, content, snapshotters, puller, config.bulkhead.pull_timeout),
        catalogue=Catalogue(store, config.images.pinned_images.values()),
        layer_puller=layers,
        puller=puller,
        collector=Collector(store, content, client, leases, discard_unpacked_layers=discard, elsewhere=garbage.collect),
        usage=ContainerUsage(store, client, config.images.stats_collect_period, proxies),
        recovery=Recovery(store, content, client),
        damage=damage,
        registries=registries,
        gate=gate,
    )
