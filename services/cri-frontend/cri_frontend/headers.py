"""Metadata on its way through the proxy: which keys belong to one hop and which to the caller."""

from collections.abc import Iterable

from bulkhead import rpc

Pairs = tuple[tuple[str, str | bytes], ...]

_HOP = frozenset({"user-agent", "content-type", "te", "host", rpc.CORRELATION_KEY, rpc.ANSWERED_KEY})
_KEPT = frozenset({"grpc-status-details-bin", "grpc-trace-bin", "grpc-tags-bin"})


def passed_on(pairs: Iterable[tuple[str, str | bytes]] | None) -> Pairs:
    """Return the pairs to hand on: all but those that gRPC or Bulkhead set for a single hop."""
    return tuple((key, value) for key, value in pairs or () if key in _KEPT or not _of_one_hop(key))


def _of_one_hop(key: str) -> bool:
    return key.startswith((":", "grpc-")) or key in _HOP
