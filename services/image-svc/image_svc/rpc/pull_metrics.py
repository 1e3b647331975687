"""How far each pull under way is, as metrics: a pull that is over leaves no series behind."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from image_svc.pulling.progress import Pulls


class PullMetrics(Collector):
    """Reads the pulls when somebody scrapes."""

    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield bytes received and expected by reference; several pulls of one are added up."""
        received = GaugeMetricFamily(
            "bulkhead_image_pull_received_bytes", "Bytes of a pull under way that are here.", labels=["reference"]
        )
        size = GaugeMetricFamily(
            "bulkhead_image_pull_size_bytes", "Bytes of all layers of a pull under way.", labels=["reference"]
        )
        sums: dict[str, tuple[int, int]] = {}
        for pull in self._pulls.current():
            before = sums.get(pull.reference, (0, 0))
            sums[pull.reference] = before[0] + pull.received, before[1] + pull.total
        for reference, (here, total) in sums.items():
            received.add_metric([reference], here)
            size.add_metric([reference], total)
        yield received
        yield size
