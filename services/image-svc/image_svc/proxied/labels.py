"""What a proxy snapshotter is told of a layer before its blob is there (containerd, pkg/snapshotters, core/unpack).

Labels whose name begins with `containerd.io/snapshot/` reach a snapshotter. Those of the layer's descriptor come from
the image and always do, but for the two that would have a snapshotter change the owners of files. The image's reference
and digests, by which a snapshotter finds the layer in the registry, go along only with
`disable_snapshot_annotations = false`.
"""

from collections.abc import Iterator, Mapping, Sequence

from image_svc.registry.repository import Descriptor

PREFIX = "containerd.io/snapshot/"
#: The snapshot that is to come of a preparation; a snapshotter that has it says so instead of preparing.
TARGET = "containerd.io/snapshot.ref"
DIFF_ID, PARENT = f"{PREFIX}diff-id", f"{PREFIX}parent-chain-id"
IMAGE, LAYER = f"{PREFIX}cri.image-ref", f"{PREFIX}cri.layer-digest"
MANIFEST, LAYERS = f"{PREFIX}cri.manifest-digest", f"{PREFIX}cri.image-layers"
_OURS = frozenset({DIFF_ID, PARENT, IMAGE, LAYER, MANIFEST, LAYERS})
_OWNERS = (f"{PREFIX}uidmapping", f"{PREFIX}gidmapping")
#: Bytes of a label's name and value (containerd, pkg/labels).
LIMIT = 4096


def of_layers(
    image: str,
    manifest: str,
    layers: Sequence[Descriptor],
    diff_ids: Sequence[str],
    chain_ids: Sequence[str],
    *,
    annotations: bool,
) -> Iterator[dict[str, str]]:
    """Yield the labels of each layer, base first.

    `image` is the reference that is pulled, `annotations` whether the snapshotter is told of it.
    """
    for number, layer in enumerate(layers):
        labels = {key: value for key, value in layer.annotations.items() if _passes(key, value)}
        if annotations:
            rest = [each.digest for each in layers[number:]]
            labels |= {IMAGE: image, LAYER: layer.digest, MANIFEST: manifest, LAYERS: _joined(rest)}
        labels |= {TARGET: chain_ids[number], DIFF_ID: diff_ids[number]}
        if number:
            labels[PARENT] = chain_ids[number - 1]
        yield labels


def prepared(described: Mapping[str, str]) -> bool:
    """Tell by a layer's labels whether the image itself speaks of it to snapshotters, as those for lazy ones do.

    stargz, nydus and overlaybd find what they need in the layer in annotations of its descriptor.
    """
    return any(key.startswith(PREFIX) and key not in _OURS for key in described)


def _passes(key: str, value: str) -> bool:
    if not key.startswith(PREFIX) or key in _OWNERS or not (key + value).isprintable():
        return False
    return len(key.encode()) + len(value.encode()) <= LIMIT


def _joined(digests: Sequence[str]) -> str:
    """Return as many of them as a label holds."""
    joined = ""
    for digest in digests:
        longer = f"{joined},{digest}" if joined else digest
        if len(LAYERS) + len(longer) > LIMIT:
            break
        joined = longer
    return joined
