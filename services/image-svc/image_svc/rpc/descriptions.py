"""One image in detail: its documents, and its layers with whom they are encrypted for."""

import base64
import binascii
from collections.abc import Iterator, Sequence

from bulkhead.errors import BulkheadError, NotFound
from bulkhead.proto import images_pb2
from image_svc.oci.manifest import CONFIG_LIMIT
from image_svc.oci.platforms import Platform
from image_svc.parts import Parts
from image_svc.registry.repository import Descriptor
from image_svc.rpc.inventory import Inventory
from image_svc.transfer import selection
from image_svc.transfer.contents import Contents, Variant

#: ocicrypt's annotations of a wrapped layer key: one for each scheme, its value a list of base64 joined by commas.
WRAPPED = "org.opencontainers.image.enc.keys."


class Descriptions:
    """Answers Inspect and LayerInfo."""

    def __init__(self, parts: Parts, contents: Contents, inventory: Inventory, host: Platform) -> None:
        self._parts = parts
        self._contents = contents
        self._inventory = inventory
        self._host = host

    def inspect(self, image: str, platform: str) -> images_pb2.InspectResponse:
        """Return everything that is known of an image, for one platform."""
        entry = self._inventory.find(image)
        tree = self._inventory.tree(entry)
        variant = self._inventory.variant(entry, tree)
        if platform:
            variant = tree.select([selection.parse(platform, self._host)], entry.label)[0]
        if not variant.known or variant.config is None:
            raise NotFound(f"{entry.label}: the manifest for {variant.platform or 'this platform'} is not here")
        index = self._contents.bytes(tree.target.digest) if tree.indexes else b""
        return images_pb2.InspectResponse(
            image=self._inventory.summary(entry),
            config_json=self._contents.bytes(variant.config.digest, CONFIG_LIMIT),
            manifest_json=self._contents.bytes(variant.descriptor.digest),
            index_json=index,
            layers=self._layers(variant),
        )

    def layers(self, image: str, names: Sequence[str]) -> images_pb2.LayerInfoResponse:
        """Return the layers of the platforms asked for, or of all that are here."""
        entry = self._inventory.find(image)
        tree = self._inventory.tree(entry)
        if names:
            chosen = tree.select([selection.parse(name, self._host) for name in names], entry.label)
        else:
            chosen = tree.images or [self._inventory.variant(entry, tree)]
        known = [variant for variant in chosen if variant.known]
        if not known:
            absent = ", ".join(str(variant.platform) for variant in chosen)
            raise NotFound(f"{entry.label}: the manifest for {absent} is not here; pull that platform")
        return images_pb2.LayerInfoResponse(layers=[layer for variant in known for layer in self._layers(variant)])

    def _layers(self, variant: Variant) -> Iterator[images_pb2.LayerDescription]:
        diff_ids = self._diff_ids(variant)
        for index, layer in enumerate(variant.layers):
            schemes = _wrapped(layer)
            yield images_pb2.LayerDescription(
                index=index,
                digest=layer.digest,
                platform=str(variant.platform or ""),
                size=layer.size,
                encryption=sorted(schemes),
                recipients=[each for scheme in sorted(schemes) for each in _recipients(scheme, schemes[scheme])],
                media_type=layer.media_type,
                diff_id=diff_ids[index] if index < len(diff_ids) else "",
                present=self._parts.content.has(layer.digest),
            )

    def _diff_ids(self, variant: Variant) -> list[str]:
        try:
            rootfs = self._contents.config(variant).get("rootfs")
        except BulkheadError:
            return []
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _wrapped(layer: Descriptor) -> dict[str, str]:
    """Return the wrapped keys of a layer by scheme."""
    return {name[len(WRAPPED) :]: value for name, value in layer.annotations.items() if name.startswith(WRAPPED)}


def _recipients(scheme: str, wrapped: str) -> list[str]:
    """Return whom a layer's key is wrapped for: OpenPGP says it by key id, the others keep it to themselves.

    For those the scheme stands in brackets once for each wrapping, as `ctr-enc images layerinfo` shows it.
    """
    parts = [part for part in wrapped.split(",") if part]
    if scheme != "pgp":
        return [f"[{scheme}]" for _ in parts]
    return [name for part in parts for name in (_key_ids(part) or ["[pgp]"])]


def _key_ids(encoded: str) -> list[str]:
    """Return the key ids of the session key packets that an OpenPGP message begins with (RFC 9580, 5.1)."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return []
    found: list[str] = []
    while (packet := _packet(data)) is not None:
        tag, body, data = packet
        if tag != 1:
            break
        if len(body) > 9 and body[0] == 3:
            found.append(f"0x{body[1:9].hex()}")
    return found


def _packet(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Return tag, body and the rest of the first packet; None if there is none of a definite length (4.2)."""
    if len(data) < 2 or not data[0] & 0x80:
        return None
    if data[0] & 0x40:
        tag, first = data[0] & 0x3F, data[1]
        if first < 192:
            start, length = 2, first
        elif first < 224:
            start, length = 3, ((first - 192) << 8) + int.from_bytes(data[2:3]) + 192
        elif first == 255:
            start, length = 6, int.from_bytes(data[2:6])
        else:
            return None
    else:
        tag, octets = (data[0] >> 2) & 0xF, 1 << (data[0] & 3)
        if octets == 8:
            return None
        start, length = 1 + octets, int.from_bytes(data[1 : 1 + octets])
    return tag, data[start : start + length], data[start + length :]
