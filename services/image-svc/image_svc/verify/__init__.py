"""Image verifiers: programs of the administrator's that must agree to an image (containerd's "bindir" protocol)."""

from image_svc.verify.gate import Gate

__all__ = ["Gate"]
