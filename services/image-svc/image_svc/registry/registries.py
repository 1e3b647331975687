"""All that a node knows of registries, in one place: what to pull from, push to, and say about either."""

from bulkhead.config.model import Config
from bulkhead.proto.runtime.v1.api_pb2 import AuthConfig
from image_svc.credentials import Providers
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.registry import explain as explaining
from image_svc.registry.explain import Explanation
from image_svc.registry.push import Pusher
from image_svc.registry.repository import Repository, Retry
from image_svc.registry.stream import Rate


class Registries:
    """Makes the clients of registries as the configuration wants them; what credential providers said is shared."""

    def __init__(self, config: Config, *, retry: Retry | None = None) -> None:
        self._registry = config.images.registry
        own = config.bulkhead
        self._providers = Providers(own.image_credential_provider_config, own.image_credential_provider_bin_dir)
        self._retry = retry or _retry(config)

    def repository(self, name: Reference, auth: AuthConfig | None = None) -> Repository:
        """Return a repository to pull from; what is wrong with hosts.toml is an error here."""
        return Repository(name, self._registry, auth, providers=self._providers, retry=self._retry)

    def pusher(self, name: Reference, auth: AuthConfig | None = None) -> Pusher:
        """Return a repository to push to."""
        return Pusher(name, self._registry, auth, providers=self._providers, retry=self._retry)

    def explain(
        self,
        text: str,
        patience: Patience,
        auth: AuthConfig | None = None,
        *,
        offline: bool = False,
        push: bool = False,
    ) -> Explanation:
        """Return every host that would be asked for an image, in order, and why (registry.explain)."""
        return explaining.explain(
            text, self._registry, patience, auth, providers=self._providers, offline=offline, push=push
        )


def _retry(config: Config) -> Retry:
    window = 30.0
    progress = config.images.image_pull_progress_timeout
    return Retry(
        read_timeout=min(window, progress) if progress else window,
        rate=Rate(config.bulkhead.pull_minimum_rate, window),
    )
