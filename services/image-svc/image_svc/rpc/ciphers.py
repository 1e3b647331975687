"""Management's calls about encryption: encrypt, decrypt, unpack, evict."""

from collections.abc import Callable

from bulkhead.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto import keys_pb2
from image_svc.oci import reference
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import Progress
from image_svc.purpose import Purpose
from image_svc.rpc.evicting import Evictor
from image_svc.rpc.inventory import Inventory
from image_svc.transfer.contents import Contents
from image_svc.transfer.convert import Converted, Converter, Order
from image_svc.transfer.selection import selection

#: Longest file of a recipient: a public key ring of some thousand keys.
_RECIPIENT_LIMIT = 2 << 20
_SCHEMES = ("jwe", "pkcs7", "pgp", "pkcs11", "provider")

Watch = Callable[[Progress], None]


class Ciphering:
    """Carries them out."""

    def __init__(self, parts: Parts, contents: Contents, inventory: Inventory, host: Platform) -> None:
        self._parts = parts
        self._inventory = inventory
        self._host = host
        self._converter = Converter(parts, contents, host)
        self._evictor = Evictor(parts, contents)

    def encrypt(self, request: pb.EncryptImageRequest, patience: Patience, watch: Watch) -> pb.TransferResult:
        """Make an encrypted image, or add recipients to one."""
        recipients = [_recipient(each) for each in request.recipients]
        if not recipients:
            raise InvalidArgument("recipients is empty; expected at least one")
        self._parts.recovery.wait(patience)
        return self._result(self._converter.encrypt(self._order(request), recipients, patience, watch))

    def decrypt(self, request: pb.DecryptImageRequest, patience: Patience, watch: Watch) -> pb.TransferResult:
        """Make a plain image. PermissionDenied without a grant of root's: others may use an image, not take it out."""
        if not request.grant:
            raise PermissionDenied("decrypting an image is root's: it takes a grant of root's at the decryptor")
        self._parts.recovery.wait(patience)
        return self._result(self._converter.decrypt(self._order(request), patience, watch))

    def unpack(self, request: pb.UnpackRequest, patience: Patience, watch: Watch) -> pb.TransferResult:
        """Make an image of content that is here. FailedPrecondition if it is encrypted and no key opens it."""
        self._parts.recovery.wait(patience)
        entry = self._inventory.find(request.image)
        named = _name(request.image, entry.names)
        if entry.image is None:
            tree = self._inventory.tree(entry)
            variant = tree.choose(self._host)
            if variant is None:
                raise FailedPrecondition(f"{entry.label}: there is no image for this machine's platform {self._host}")
            progress = Progress(str(named))
            watch(progress)
            labels = dict(request.pod_labels)
            purpose = Purpose(request.pod, request.namespace, labels=labels, grant=request.grant)
            self._parts.puller.adopt(tree.target, named, patience, progress=progress, purpose=purpose)
            self._parts.store.promote(entry.target, variant.descriptor.digest)
            self._parts.collector.kick()
        return self._result(Converted(str(named), entry.target))

    def evict(self, request: pb.EvictRequest, patience: Patience) -> pb.EvictResponse:
        """Drop what was unpacked of images whose keys are gone."""
        self._parts.recovery.wait(patience)
        manifests = {self._inventory.find(image).manifest for image in request.images}
        return self._evictor.evict(manifests, dry_run=request.dry_run, patience=patience)

    def _order(self, request: pb.EncryptImageRequest | pb.DecryptImageRequest) -> Order:
        name = reference.parse_tagged(request.name)
        entry = self._inventory.find(request.image)
        tree = self._inventory.tree(entry)
        wanted = request.platforms
        return Order(
            label=entry.label,
            tree=tree,
            main=self._inventory.variant(entry, tree),
            name=name,
            selection=selection(wanted.names, self._host, all_platforms=wanted.all),
            layers=tuple(request.layers),
            grant=request.grant,
        )

    def _result(self, made: Converted) -> pb.TransferResult:
        entry = self._inventory.find(made.name)
        return pb.TransferResult(
            images=[self._inventory.summary(entry)],
            digest=made.target,
            warnings=filter(None, [made.warning]),
            names=[made.name],
        )


def _recipient(asked: pb.ImageRecipient) -> keys_pb2.Recipient:
    if asked.scheme not in _SCHEMES:
        raise InvalidArgument(f"recipient scheme {asked.scheme[:40]!r}; expected one of {', '.join(_SCHEMES)}")
    if len(asked.key) > _RECIPIENT_LIMIT:
        raise InvalidArgument(
            f"recipient {asked.scheme}: {len(asked.key)} bytes, at most {_RECIPIENT_LIMIT} are allowed"
        )
    return keys_pb2.Recipient(scheme=asked.scheme, key=asked.key, name=asked.name)


def _name(asked: str, names: tuple[str, ...]) -> Reference:
    """Return the name that was asked for, or for an id or a digest the first there is."""
    found = reference.complete(asked)
    return reference.parse(found if found in names else names[0])
