"""One line and one count for each use of a key."""

import logging
import time
from collections.abc import Sequence

from prometheus_client import Counter

from bulkhead.metrics import STAGES
from bulkhead.proto import keys_pb2
from decryptor import options, verdict

audit = logging.getLogger("decryptor.audit")

UNWRAPS = Counter(
    "bulkhead_decryptor_unwraps_total",
    "Layer keys asked for, by scheme (all that a refused layer offers) and verdict: opened, remembered, refused.",
    ["scheme", "verdict"],
)
LAYERS = Counter(
    "bulkhead_decryptor_layers_total",
    "Layers worked on, by operation (decrypt, encrypt, recipients) and gRPC code.",
    ["operation", "code"],
)
BYTES = Counter("bulkhead_decryptor_bytes_total", "Bytes of layers, by operation: decrypt, encrypt.", ["operation"])


class Line:
    """The audit line of one layer, begun when the key is asked for."""

    def __init__(self, operation: str, use: keys_pb2.Use, layer: keys_pb2.Layer) -> None:
        self._began = time.monotonic()
        self._fields = {
            "operation": operation,
            "image": verdict.shown(use.image),
            "pod": verdict.shown(use.pod),
            "layer": verdict.shown(layer.digest),
        }
        if use.grant:
            self._fields["granted"] = "by root"
        self._offered = options.schemes(layer.annotations)

    def opened(self, scheme: str, fingerprint: str, *, remembered: bool = False) -> None:
        """A key opened the layer, now or a moment ago."""
        result = "remembered" if remembered else "opened"
        UNWRAPS.labels(verdict.label(scheme), result).inc()
        self._write(logging.INFO, result, scheme=verdict.shown(scheme), fingerprint=fingerprint)

    def refused(self, reason: str, fingerprints: Sequence[str]) -> None:
        """None did; `fingerprints` are those of the keys that were tried."""
        for label in {verdict.label(scheme) for scheme in self._offered} or {"unknown"}:
            UNWRAPS.labels(label, "refused").inc()
        self._write(
            logging.WARNING,
            "refused",
            scheme=",".join(map(verdict.shown, self._offered)),
            fingerprint=",".join(dict.fromkeys(filter(None, fingerprints))),
            reason=reason,
        )

    def _write(self, level: int, result: str, **more: str) -> None:
        duration = time.monotonic() - self._began
        STAGES.labels("unwrap", "error" if result == "refused" else "ok").observe(duration)
        fields = {**self._fields, "verdict": result, **more, "duration": f"{duration:.6f}"}
        audit.log(level, "key %s", result, extra=fields)
