"""TLS as a host's configuration wants it, on top of the system's authorities."""

import functools
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from bulkhead.errors import FailedPrecondition
from image_svc.registry import regular
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


def check_files(host: Host) -> None:
    """Raise FailedPrecondition, with what names it, for a certificate or key of a host that cannot be read.

    Whoever configured it means the host to be asked with it: to go on with the next one would hide the mistake.
    """
    for pair in (*((path, None) for path in host.tls.ca), *host.tls.client):
        for path in filter(None, pair):
            with _naming(path, host):
                regular.check(path)


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
        why = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else str(error)
        raise FailedPrecondition(f"{host.source}: {host.origin}: certificate file {file}: {why}") from error
