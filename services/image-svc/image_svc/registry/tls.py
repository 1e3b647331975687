"""TLS as a host's configuration wants it, on top of the system's authorities."""

import functools
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.errors import FailedPrecondition
from image_svc.registry.failures import HostFailure
from image_svc.registry.hosts import Host, Tls


def context(host: Host) -> ssl.SSLContext:
    """Return the TLS settings of a host on top of the system's authorities; an unreadable file is named."""
    if host.tls == Tls():
        bundle = ssl.get_default_verify_paths().cafile
        return _system_context(os.stat(bundle).st_mtime_ns if bundle and os.path.exists(bundle) else 0)
    if host.tls.skip_verify:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    else:
        made = _verifying()
    for authority in host.tls.ca:
        with _naming(authority, host):
            made.load_verify_locations(authority)
    for certificate, key in host.tls.client:
        with _naming(certificate, host):
            made.load_cert_chain(certificate, key, password=_no_password)
    return made


def unused() -> ssl.SSLContext:
    """Return settings that trust nobody, for connections without TLS: reading the system's authorities takes 20 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.lru_cache(maxsize=1)
def _system_context(stamp: int) -> ssl.SSLContext:
    """Return the system's authorities, which take 20 ms to read, as of the bundle's modification time."""
    return _verifying()


def _verifying() -> ssl.SSLContext:
    """Return a context that verifies with the system's authorities, as containerd does and on every Python alike.

    Python 3.13's default refuses certificates that lack extensions of RFC 5280, as registries' own authorities often
    do, and is the first to take an intermediate authority as an anchor.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _no_password() -> bytes:
    """Answer OpenSSL, which would ask the terminal of whoever started the service, that an encrypted key has none."""
    return b""


@contextmanager
def _naming(file: object, host: Host) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as error:
        raise HostFailure(FailedPrecondition(f"{host.origin}: certificate file {file}: {error}")) from error
