"""Shares of a cache as bit masks of resctrl: each bit is a part of the cache, and a mask is one block of ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_KINDS = ("unified", "code", "data")
_PERCENT = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?%")
_HEX = re.compile(r"0x([0-9a-fA-F]{1,16})")
_BITS = re.compile(r"\d{1,2}(-\d{1,2})?(,\d{1,2}(-\d{1,2})?)*")


@dataclass(frozen=True)
class CacheInfo:
    """What the kernel says of one level of cache."""

    ids: tuple[int, ...]
    #: All the bits there are (cbm_mask), ones from bit 0 on.
    mask: int
    #: Fewest bits that a mask may have.
    min_bits: int
    #: Mounted with cdp: code and data have masks of their own.
    split: bool = False


@dataclass(frozen=True)
class Percent:
    """A part of the share above, as a range of percent."""

    low: int
    high: int
    #: Whether it was given as a range.
    ranged: bool = False


#: A part of the share above: percent, or a mask counted from that share's lowest bit.
Proportion = Percent | int


@dataclass(frozen=True)
class Allocation:
    """What is wanted of one cache; code and data fall back to unified."""

    unified: Proportion | None = None
    code: Proportion | None = None
    data: Proportion | None = None

    def effective(self, kind: str) -> Proportion | None:
        """Return what counts for "unified", "code" or "data"."""
        found: Proportion | None = getattr(self, kind)
        return self.unified if found is None else found


def parse_proportion(text: str, cache: CacheInfo) -> Proportion:
    """Return what `50%`, `50-60%`, `0-5,6` or `0xff0` stands for; ValueError for anything else."""
    if match := _PERCENT.fullmatch(text):
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high or high > 100:
            raise ValueError(f"{text!r} is no range of percent")
        return Percent(low, high, ranged=True) if match[2] else Percent(0, high)
    if match := _HEX.fullmatch(text):
        mask = int(match[1], 16)
    elif _BITS.fullmatch(text):
        mask = _mask_of(text)
    else:
        raise ValueError(f"{text[:80]!r}, expected percent, bit numbers or a mask: 50%, 50-60%, 0-5, 0xff0")
    if not _one_block(mask) or mask.bit_count() < cache.min_bits:
        raise ValueError(f"{text!r} is not one block of at least {cache.min_bits} ones")
    return mask


def partition(
    level: str, wanted: Mapping[str, Mapping[int, Allocation]], cache: CacheInfo
) -> dict[str, dict[int, Allocation]]:
    """Return each partition's masks by cache id; no two share a bit. ValueError where that cannot be."""
    found: dict[str, dict[int, Allocation]] = {name: {} for name in wanted}
    for number in cache.ids:
        masks: dict[str, dict[str, int]] = {name: {} for name in wanted}
        for kind in _KINDS:
            asked = {name: getattr(wanted[name].get(number, Allocation()), kind) for name in sorted(wanted)}
            for name, mask in _exclusive(f"{level} cache {number} ({kind})", asked, cache).items():
                masks[name][kind] = mask
        for name, by_kind in masks.items():
            if by_kind:
                found[name][number] = Allocation(**by_kind)
    return found


def lines(
    level: str, wanted: Mapping[int, Allocation] | None, shares: Mapping[int, Allocation], cache: CacheInfo
) -> list[str]:
    """Return a class's lines of `schemata` for one level, within its partition's shares."""
    found = []
    for kind in ("code", "data") if cache.split else ("unified",):
        values = []
        for number in sorted(cache.ids):
            share = shares[number].effective(kind) if number in shares else None
            mask = share if isinstance(share, int) else cache.mask
            part = wanted[number].effective(kind) if wanted is not None else None
            values.append(f"{number}={mask if part is None else _within(part, mask, cache.min_bits):x}")
        found.append(f"{level}{'' if kind == 'unified' else kind.upper()}:{';'.join(values)}")
    return found


def _exclusive(where: str, asked: dict[str, Proportion | None], cache: CacheInfo) -> dict[str, int]:
    """Return masks for partitions that have all asked in the same way: in percent, or by masks."""
    said = {name: part for name, part in asked.items() if part is not None}
    if not said:
        return {}
    if len(said) != len(asked):
        raise ValueError(f"{where}: only some partitions ask for a part: {', '.join(said)}")
    masks = {name: part for name, part in said.items() if isinstance(part, int)}
    if not masks:
        return _by_percent(where, {name: part for name, part in said.items() if isinstance(part, Percent)}, cache)
    if len(masks) != len(said):
        raise ValueError(f"{where}: partitions ask partly in percent, partly by masks")
    taken = 0
    for name, mask in masks.items():
        if mask & taken:
            raise ValueError(f"{where}: partition {name} overlaps another")
        taken |= mask
    return masks


def _by_percent(where: str, asked: dict[str, Percent], cache: CacheInfo) -> dict[str, int]:
    """Return blocks side by side; small ones are settled first, for they may have to be rounded up."""
    if any(part.ranged for part in asked.values()):
        raise ValueError(f"{where}: a partition cannot be a range of percent")
    total = sum(part.high for part in asked.values())
    if total > 100:
        raise ValueError(f"{where}: the partitions ask for {total}% together")
    bits = left = total * _trailing_ones(cache.mask) // 100
    order = sorted(asked, key=lambda name: asked[name].high)
    widths: dict[str, int] = {}
    for name in order:
        if left < max(cache.min_bits, 1) or bits == 0:
            raise ValueError(f"{where}: not enough bits for every partition")
        width = max(asked[name].high * left // max(left * total // bits, 1), cache.min_bits)
        widths[name] = left if width > left or name == order[-1] else width
        left -= widths[name]
    found, low = {}, 0
    for name in asked:
        found[name] = ((1 << widths[name]) - 1) << low
        low += widths[name]
    return found


def _within(part: Proportion, base: int, min_bits: int) -> int:
    """Return the mask of a part of `base`."""
    if not base or not _one_block(base) or base.bit_count() < min_bits:
        raise ValueError(f"the share {base:#x} is not one block of at least {min_bits} ones")
    shift = (base & -base).bit_length() - 1
    if isinstance(part, int):
        mask = part << shift
        if mask | base != base:
            raise ValueError(f"mask {part:#x} does not fit into the share {base:#x}")
        return mask
    width = base.bit_count()
    low, high = max(part.low, 1), part.high
    if low > high:
        raise ValueError("0% of a share is no share")
    first, last = (low - 1) * width // 100, (high - 1) * width // 100
    gap = max(min_bits - (last - first + 1), 0)
    first, gap = max(first - gap, 0), max(gap - first, 0)
    return ((1 << (last + gap - first + 1)) - 1) << (first + shift)


def _mask_of(text: str) -> int:
    mask = 0
    for part in text.split(","):
        low, _, high = part.partition("-")
        first, last = int(low), int(high or low)
        if last > 63 or (high and last <= first):
            raise ValueError(f"{part!r} is no range of bits 0 to 63")
        mask |= ((1 << (last - first + 1)) - 1) << first
    return mask


def _one_block(mask: int) -> bool:
    return mask.bit_count() == mask.bit_length() - ((mask & -mask).bit_length() - 1 if mask else 0)


def _trailing_ones(mask: int) -> int:
    return (~mask & (mask + 1)).bit_length() - 1
