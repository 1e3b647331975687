"""Credentials from programs, the kubelet's credential providers, so that no password need stand in a file."""

from image_svc.credentials.plugin import Found, ProviderError, Providers

__all__ = ["Found", "ProviderError", "Providers"]
