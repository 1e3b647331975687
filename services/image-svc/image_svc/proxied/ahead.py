"""Downloads that begin before it is their layers' turn, while those beneath are prepared and unpacked.

A snapshotter is asked about one layer after the other, and one that fetches lazily takes a layer without its blob. So
nothing is fetched ahead until a snapshotter has left a layer to us; from then on it is expected to leave all those that
follow, as containerd (core/unpack) expects it, too. But layers that the image's maker prepared for lazy snapshotters
and those that nobody did are told apart: what becomes of one kind says nothing about the other.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

from image_svc.proxied.extract import Wanted
from image_svc.pulling.download import Download
from image_svc.pulling.progress import Progress
from image_svc.store import Layer

#: Begins a layer's download, or joins the one there is, for as long as a block lasts.
Fetch = Callable[[Layer], AbstractContextManager[tuple[Download, bool]]]


class Ahead:
    """The downloads of one pull that are under way; at the end of the block, those that nobody else wants end."""

    def __init__(self, wanted: Sequence[Wanted], fetch: Fetch, progress: Progress) -> None:
        self._wanted = wanted
        self._fetch = fetch
        self._progress = progress
        #: Whether layers for lazy snapshotters, and whether others, are fetched.
        self._kinds: set[bool] = set()
        #: What lets go of a download, by the layer's chain id.
        self._held: dict[str, ExitStack] = {}

    def begin(self, position: int) -> None:
        """Fetch the layer at that position, which was left to us, and then those above it of its kind."""
        kind = self._wanted[position].for_lazy
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        for wanted in self._wanted[position:]:
            if wanted.for_lazy == kind:
                self._hold(wanted.layer)

    def end(self, layer: Layer) -> None:
        """Let go of a layer's download: it is unpacked, or will not be."""
        if held := self._held.pop(layer.chain_id, None):
            held.close()

    def _hold(self, layer: Layer) -> None:
        with ExitStack() as entered:
            download, _ = entered.enter_context(self._fetch(layer))
            for shown in self._progress.layers:
                if shown.chain_id == layer.chain_id:
                    download.show(shown)
            self._held[layer.chain_id] = entered.pop_all()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as left:
            for held in self._held.values():
                left.callback(held.close)
