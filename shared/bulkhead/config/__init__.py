"""The configuration: containerd's file, read strictly, and `[bulkhead]`."""

from bulkhead.config.load import Loaded, examine, load
from bulkhead.config.model import Config

__all__ = ["Config", "Loaded", "examine", "load"]
