"""A client of the Container Network Interface, versions 0.3.1 to 1.1.0 of the specification."""

from sandbox_svc.cni.manager import Manager, managers
from sandbox_svc.cni.model import AddResult, Attachment, NetworkResult, NetworkState

__all__ = ["AddResult", "Attachment", "Manager", "NetworkResult", "NetworkState", "managers"]
