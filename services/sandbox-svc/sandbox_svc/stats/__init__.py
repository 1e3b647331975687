"""Resource usage of pods and containers, read from control groups, /proc and the containers' own layers."""

from sandbox_svc.stats.collector import Collector, ContainerSource, PodSource

__all__ = ["Collector", "ContainerSource", "PodSource"]
