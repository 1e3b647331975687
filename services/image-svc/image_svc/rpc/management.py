"""bulkhead.images.v1.Management: images by hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from bulkhead import rpc
from bulkhead.errors import Cancelled, InvalidArgument
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.images_pb2_grpc import ManagementServicer
from image_svc.oci import platforms, reference
from image_svc.oci.platforms import Platform
from image_svc.oci.reference import Reference
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.pulling.progress import Progress
from image_svc.purpose import Purpose
from image_svc.rpc import filters, transfers
from image_svc.rpc.accounts import Accounts
from image_svc.rpc.ciphers import Ciphering
from image_svc.rpc.descriptions import Descriptions
from image_svc.rpc.explaining import explain
from image_svc.rpc.inventory import Entry, Inventory
from image_svc.rpc.naming import Naming
from image_svc.transfer.contents import Contents, Tree, Variant
from image_svc.transfer.export import Exporter, Outgoing
from image_svc.transfer.fetch import Fetcher, Wish
from image_svc.transfer.incoming import Importer, Options
from image_svc.transfer.push import Parcel, Sender
from image_svc.transfer.selection import Selection, selection

Watch = Callable[[Progress], None]

#: Seconds that an import or an export may take: the disk is slow and archives are large.
_ARCHIVE_TIMEOUT = 6 * 3600.0


class Management(ManagementServicer):
    """Serves images to people and their tools."""

    def __init__(self, parts: Parts, host: Platform | None = None) -> None:
        self._parts = parts
        self._host = host or platforms.current()
        contents = Contents(parts.content)
        self._inventory = Inventory(parts, contents, self._host)
        self._contents = contents
        self._accounts = Accounts(parts, contents, self._inventory)
        self._naming = Naming(parts, self._inventory, self._accounts)
        self._descriptions = Descriptions(parts, contents, self._inventory, self._host)
        self._importer = Importer(parts, contents, self._host)
        self._fetcher = Fetcher(parts, contents, self._host)
        self._sender = Sender(parts, contents)
        self._ciphering = Ciphering(parts, contents, self._inventory, self._host)

    @rpc.long_call
    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListResponse:
        """List what is here and meets the conditions."""
        matches = filters.all_of(request.filters)
        found = self._inventory.summaries(self._inventory.entries())
        wanted = [each for each in found if matches(each) and filters.narrow(each, request.filters)]
        return pb.ListResponse(images=wanted)

    @rpc.long_call
    def Pull(self, request: pb.PullRequest, context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Pull an image and tell how it goes; the pull ends when the caller hangs up."""
        if not request.image:
            raise InvalidArgument("image is empty; expected a name")
        patience = self._patience(context, self._parts.config.bulkhead.pull_timeout, f"pull of {request.image}")
        auth = request.auth if request.HasField("auth") else None
        selected = self._selection(request.platforms)
        snapshotter, purpose = self._snapshotter(request), Purpose(grant=request.grant)
        wish = Wish(request.image, auth, selected, request.no_unpack, purpose, snapshotter)

        def work(watch: Watch) -> pb.TransferResult:
            self._parts.recovery.wait(patience)
            pulled = self._fetcher.pull(wish, patience, watch)
            self._parts.collector.kick()
            return self._result([pulled.name], pulled.target, [pulled.warning])

        yield from transfers.stream(work)

    @rpc.long_call
    def WatchPulls(
        self, request: pb.WatchPullsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchPullsResponse]:
        """Tell how all pulls go until the caller hangs up."""
        if request.image:
            request.image = str(reference.parse(request.image))
        yield from transfers.watch(self._parts.puller.pulls, request, context)

    @rpc.long_call
    def Push(self, request: pb.PushRequest, context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Push an image and tell how it goes."""
        entry = self._inventory.find(request.image)
        patience = self._patience(context, self._parts.config.bulkhead.pull_timeout, f"push of {request.image}")
        auth = request.auth if request.HasField("auth") else None
        tree = self._inventory.tree(entry)
        parcel = Parcel(
            target=_push_target(entry, request),
            tree=tree,
            main=self._inventory.variant(entry, tree),
            names=tuple(reference.parse(name) for name in entry.names),
            selection=self._selection(request.platforms),
        )

        def work(watch: Watch) -> pb.TransferResult:
            pushed = self._sender.push(parcel, auth, patience, watch)
            return pb.TransferResult(
                images=[self._inventory.summary(entry)],
                digest=pushed.digest,
                warnings=filter(None, [pushed.warning]),
                names=[str(parcel.target)],
            )

        yield from transfers.stream(work)

    def Tag(self, request: pb.TagRequest, context: grpc.ServicerContext) -> pb.TagResponse:
        """Give an image further names."""
        return pb.TagResponse(names=self._naming.tag(request.image, request.names, keep_existing=request.keep_existing))

    def Delete(self, request: pb.DeleteRequest, context: grpc.ServicerContext) -> pb.DeleteResponse:
        """Remove a name or an image."""
        return self._naming.delete(request.image, force=request.force)

    def Inspect(self, request: pb.InspectRequest, context: grpc.ServicerContext) -> pb.InspectResponse:
        """Describe one image."""
        return self._descriptions.inspect(request.image, request.platform)

    def LayerInfo(self, request: pb.LayerInfoRequest, context: grpc.ServicerContext) -> pb.LayerInfoResponse:
        """Describe the layers of one image."""
        return self._descriptions.layers(request.image, request.platforms)

    @rpc.long_call
    def Usage(self, request: pb.UsageRequest, context: grpc.ServicerContext) -> pb.UsageResponse:
        """Say what takes how much of the disk."""
        return self._accounts.usage()

    @rpc.long_call
    def Prune(self, request: pb.PruneRequest, context: grpc.ServicerContext) -> pb.PruneResponse:
        """Remove images that nobody uses."""
        return self._naming.prune(request)

    @rpc.long_call
    def Import(self, requests: Iterator[pb.ImportRequest], context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Take an archive in and tell how the unpacking goes."""
        with self._archive(context, "import") as patience:
            first = next(requests, None)
            if first is None or not first.HasField("options"):
                raise InvalidArgument("the first message of an import holds its options")
            asked = first.options
            selected, snapshotter = self._selection(asked.platforms), self._snapshotter(asked)
            options = Options(asked.names, asked.base_name, selected, asked.no_unpack, snapshotter)

            def work(watch: Watch) -> pb.TransferResult:
                self._parts.recovery.wait(patience)
                try:
                    taken = self._importer.run(_data(requests), options, patience, watch)
                finally:
                    self._parts.collector.kick()
                names = [name for image in taken for name in image.names]
                return self._result(names, taken[0].target, [image.warning for image in taken])

            yield from transfers.stream(work)

    @rpc.long_call
    def Export(self, request: pb.ExportRequest, context: grpc.ServicerContext) -> Iterator[pb.ExportResponse]:
        """Hand out images as one tar."""
        if not request.images:
            raise InvalidArgument("images is empty; expected at least one")
        wanted = self._selection(request.platforms)
        docker = request.format == pb.ExportRequest.DOCKER_ARCHIVE
        with self._archive(context, "export") as patience, self._parts.leases.lease() as lease:
            images = [self._outgoing(image, wanted) for image in request.images]
            exporter = Exporter(self._parts.content, self._contents, images, docker=docker)
            lease.claim(*exporter.digests)
            exporter.check()
            yield pb.ExportResponse(total=exporter.total)
            for piece in exporter.pieces():
                patience.check()
                yield pb.ExportResponse(data=piece)

    @contextmanager
    def _archive(self, context: grpc.ServicerContext, what: str) -> Iterator[Patience]:
        """Yield the time that an archive has; who neither sends nor takes a byte of it is hung up on at its end."""
        patience = self._patience(context, _ARCHIVE_TIMEOUT, what)
        with patience.bounded(context.cancel):
            yield patience

    @rpc.long_call
    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
        """Say which hosts would be asked for an image, and what they answer."""
        return explain(self._parts, request, context)

    @rpc.long_call
    def Encrypt(self, request: pb.EncryptImageRequest, context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Make an encrypted image of another."""
        patience = self._patience(context, _ARCHIVE_TIMEOUT, f"encryption of {request.image}")
        yield from transfers.stream(lambda watch: self._ciphering.encrypt(request, patience, watch))

    @rpc.long_call
    def Decrypt(self, request: pb.DecryptImageRequest, context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Make a plain image of an encrypted one."""
        patience = self._patience(context, _ARCHIVE_TIMEOUT, f"decryption of {request.image}")
        yield from transfers.stream(lambda watch: self._ciphering.decrypt(request, patience, watch))

    @rpc.long_call
    def Unpack(self, request: pb.UnpackRequest, context: grpc.ServicerContext) -> Iterator[pb.TransferEvent]:
        """Unpack what is here as content."""
        patience = self._patience(context, self._parts.config.bulkhead.pull_timeout, f"unpacking of {request.image}")
        yield from transfers.stream(lambda watch: self._ciphering.unpack(request, patience, watch))

    @rpc.long_call
    def Evict(self, request: pb.EvictRequest, context: grpc.ServicerContext) -> pb.EvictResponse:
        """Drop what was unpacked of images whose keys are gone."""
        patience = self._patience(context, self._parts.config.bulkhead.pull_timeout, "eviction")
        return self._ciphering.evict(request, patience)

    def _outgoing(self, image: str, wanted: Selection) -> Outgoing:
        entry = self._inventory.find(image)
        tree = self._inventory.tree(entry)
        main = self._inventory.variant(entry, tree)
        return Outgoing(_names(entry, image), tree, tuple(_variants(tree, main, wanted, entry.label)), main)

    def _selection(self, wanted: pb.Platforms) -> Selection:
        return selection(wanted.names, self._host, all_platforms=wanted.all)

    def _snapshotter(self, asked: pb.PullRequest | pb.ImportOptions) -> str:
        """Return the snapshotter of the handler asked for; InvalidArgument for one that is not configured."""
        handler, known = asked.runtime_handler, self._parts.config.runtime.runtimes
        if handler and handler not in known:
            there_are = ", ".join(sorted(known)) or "none"
            raise InvalidArgument(f"runtime handler {handler!r} is not configured; there are {there_are}")
        if handler and asked.no_unpack:
            raise InvalidArgument("a runtime handler was named, and that nothing is to be unpacked")
        return self._parts.config.snapshotter_of(handler)

    def _patience(self, context: grpc.ServicerContext, limit: float, what: str) -> Patience:
        patience = Patience(rpc.remaining(context, limit), what)
        if not context.add_callback(patience.cancel):
            patience.cancel()
        return patience

    def _result(self, names: Sequence[str], digest: str, warnings: Sequence[str]) -> pb.TransferResult:
        entries = {entry.target: entry for entry in map(self._inventory.find, names)}
        return pb.TransferResult(
            images=self._inventory.summaries(entries.values()),
            digest=digest,
            warnings=[warning for warning in warnings if warning],
            names=names,
        )


def _data(requests: Iterator[pb.ImportRequest]) -> Iterator[bytes]:
    """Yield an archive's bytes; Cancelled if the caller hangs up before their end."""
    try:
        for request in requests:
            yield request.data
    except grpc.RpcError as error:
        raise Cancelled("import was cancelled by its caller") from error


def _push_target(entry: Entry, request: pb.PushRequest) -> Reference:
    """Return the name to push to, which must have a tag; an id needs to be told one."""
    text = request.target or request.image
    try:
        target = reference.parse(text)
    except InvalidArgument:
        target = None
    if target is None or (not request.target and str(target) not in entry.names):
        raise InvalidArgument(f"{text!r} is an id; say under which name to push it (target)")
    if target.digest:
        raise InvalidArgument(f"{text!r} has a digest; expected a name with a tag to push to")
    return target


def _names(entry: Entry, asked: str) -> tuple[Reference, ...]:
    """Return the names to export: the one asked for, or for an id every tag, or what there is by digest."""
    name = reference.complete(asked)
    names = (name,) if name in entry.names else entry.tags or entry.names[:1]
    return tuple(reference.parse(each) for each in names)


def _variants(tree: Tree, main: Variant, wanted: Selection, where: str) -> Sequence[Variant]:
    if wanted.all:
        return [variant for variant in tree.variants if variant.known]
    return tree.select(wanted.platforms, where) if wanted.platforms else [main]
