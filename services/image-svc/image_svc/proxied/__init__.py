"""Proxy snapshotters: programs of their own, called by containerd's snapshots API, that keep layers their own way.

Layers are committed under their chain ids, containers' snapshots are prepared under the containers' ids. Some
snapshotters take a layer without its blob being downloaded, and fetch what is read of it when it is read.
"""

from image_svc.proxied.client import Proxy
from image_svc.proxied.proxies import Proxies

__all__ = ["Proxies", "Proxy"]
