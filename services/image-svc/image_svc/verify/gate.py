"""When images are verified: at every pull before anything is unpacked, and again when a container is made of one."""

from bulkhead.config.model import ImageVerifier
from image_svc.ingest import Content
from image_svc.oci.manifest import kind_of, load_json
from image_svc.oci.reference import Reference
from image_svc.patience import Patience
from image_svc.pulling.metadata import Found
from image_svc.registry.repository import Descriptor
from image_svc.store import Image, Store
from image_svc.verify.verdicts import Candidate, Verifier


class Gate:
    """Lets no image pass that a verifier refuses."""

    def __init__(self, config: ImageVerifier, content: Content, store: Store) -> None:
        self._verifier = Verifier(config)
        self._content = content
        self._store = store

    def pulled(self, name: Reference, found: Found, place: object, purpose: object, patience: Patience) -> None:
        """Verify an image whose documents have come, before its layers are asked for."""
        if self._verifier.idle():
            return
        self._verifier.check(Candidate(str(name), found.target), patience)

    def prepared(self, image: Image, manifest: str, patience: Patience) -> None:
        """Verify an image of which a container is made, as it came by that manifest."""
        if self._verifier.idle():
            return
        targets = self._store.targets()
        names = [name for name in image.names if image.manifests.get(name) == manifest]
        wanted = [(name, targets.get(name, manifest)) for name in names] or [(image.id, manifest)]
        self._verifier.check_again([Candidate(name, self._described(digest)) for name, digest in wanted], patience)

    def _described(self, digest: str) -> Descriptor:
        """Return the descriptor of a manifest or index that is here; one that is gone has no size and no type."""
        try:
            data = self._content.read(digest)
        except FileNotFoundError:
            return Descriptor(digest, 0, "")
        tree = load_json(data, digest)
        own = tree.get("mediaType")
        return Descriptor(digest, len(data), own if isinstance(own, str) else kind_of(tree, "", digest))
