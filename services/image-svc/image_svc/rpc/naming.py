"""Names of images that come and go by hand: tag, delete, prune."""

from collections.abc import Iterable

from bulkhead.errors import FailedPrecondition, InvalidArgument, NotFound
from bulkhead.proto import images_pb2
from image_svc.oci import reference
from image_svc.parts import Parts
from image_svc.rpc import filters
from image_svc.rpc.accounts import Accounts, is_prunable
from image_svc.rpc.inventory import Entry, Inventory

_SHOWN = 5


class Naming:
    """Gives names and takes them away; the collector takes what has none."""

    def __init__(self, parts: Parts, inventory: Inventory, accounts: Accounts) -> None:
        self._parts = parts
        self._inventory = inventory
        self._accounts = accounts

    def tag(self, image: str, names: Iterable[str], *, keep_existing: bool) -> list[str]:
        """Give an image further names and return their complete forms."""
        entry = self._inventory.find(image)
        wanted = [str(reference.parse_tagged(name)) for name in names]
        if not wanted:
            raise InvalidArgument("names is empty; expected at least one new name")
        given = self._parts.store.tag(
            wanted, entry.manifest, entry.target, unpacked=entry.image is not None, keep_existing=keep_existing
        )
        if not given:
            raise NotFound(f"image {image!r} was removed meanwhile")
        self._parts.collector.kick()
        return wanted

    def delete(self, image: str, *, force: bool) -> images_pb2.DeleteResponse:
        """Remove a name, or an image with all its names if that was its last tag or an id was given."""
        entry = self._inventory.find(image)
        named = reference.complete(image)
        single = named in entry.names
        rest = [tag for tag in entry.tags if tag != named]
        if single and (rest or (len(entry.names) > 1 and "@" in named)):
            gone: tuple[str, ...] = (named, *self._orphans(entry, named))
        else:
            if not single and not force and len({_repository(tag) for tag in entry.tags}) > 1:
                tags = ", ".join(entry.tags)
                raise FailedPrecondition(
                    f"image {image!r} has names in several repositories ({tags}): name one, or use force"
                )
            self._check_free(entry, force=force)
            gone = entry.names
        self._parts.store.remove_names(gone)
        self._parts.collector.kick()
        # What is encrypted, or in another form, has the id of what it was made of, which may be here as well.
        left = any(each.id == entry.id for each in self._inventory.entries())
        return images_pb2.DeleteResponse(untagged=sorted(gone), deleted=[] if left or not entry.id else [entry.id])

    def prune(self, request: images_pb2.PruneRequest) -> images_pb2.PruneResponse:
        """Remove what nobody uses, or say what that would be."""
        matches = filters.all_of(request.filters)
        shares = self._accounts.shares()
        gone, shown = [], []
        for share, usage in zip(shares, self._accounts.usages(shares), strict=True):
            image = usage.image
            if is_prunable(image) and (request.all or not image.repo_tags) and matches(image):
                gone.append(share)
                shown.append(usage)
        freed = self._accounts.freed(gone, shares)
        if not request.dry_run and gone:
            self._parts.store.remove_names([name for share in gone for name in share.entry.names])
            self._parts.collector.kick()
        return images_pb2.PruneResponse(images=shown, freed=freed)

    def _check_free(self, entry: Entry, *, force: bool) -> None:
        if force:
            return
        used = sorted(self._inventory.facts().users.get(entry.id, ()))
        if used:
            some = ", ".join(key[:13] for key in used[:_SHOWN]) + (", …" if len(used) > _SHOWN else "")
            text = f"image {entry.label} is used by {len(used)} containers or pods ({some}): remove them, or use force"
            raise FailedPrecondition(text)
        if entry.image is not None and entry.image.pinned:
            text = f"image {entry.label} is pinned by the configuration (pinned_images): use force to remove it anyway"
            raise FailedPrecondition(text)

    def _orphans(self, entry: Entry, gone: str) -> list[str]:
        """Return names by digest that go with a tag: those of its repository that no other tag of it explains."""
        if "@" in gone or any(_repository(tag) == _repository(gone) for tag in entry.tags if tag != gone):
            return []
        return [name for name in entry.names if "@" in name and _repository(name) == _repository(gone)]


def _repository(name: str) -> str:
    return reference.parse(name).name
