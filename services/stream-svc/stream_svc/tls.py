"""TLS for the streams: the configured key pair, or one made at start-up and kept in memory only."""

import datetime
import ipaddress
import os
import socket
import ssl

from bulkhead.config.model import Streaming
from bulkhead.errors import FailedPrecondition, InvalidArgument

#: Days that a certificate made here is valid: one year, as containerd's.
_VALIDITY = 365


def context(streaming: Streaming, host: str) -> ssl.SSLContext | None:
    """Return the server's TLS settings, None without `enable_tls_streaming`.

    InvalidArgument if only one half of the key pair is configured, FailedPrecondition if it cannot be loaded. Without
    a configured pair a certificate for `host` signs itself.
    """
    if not streaming.enable_tls_streaming:
        return None
    if bool(streaming.tls_cert_file) != bool(streaming.tls_key_file):
        raise InvalidArgument("x509_key_pair_streaming: tls_cert_file and tls_key_file must be set together")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # Both protocols begin with an HTTP/1.1 upgrade; HTTP/2 has none.
    made.set_alpn_protocols(["http/1.1"])
    if streaming.tls_cert_file:
        reload(made, streaming)
    else:
        _load_self_signed(made, host)
    return made


def reload(made: ssl.SSLContext, streaming: Streaming) -> None:
    """Load the configured pair anew, for connections from now on; FailedPrecondition names the files that fail."""
    if not streaming.tls_cert_file:
        return
    try:
        made.load_cert_chain(streaming.tls_cert_file, streaming.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        names = f"{streaming.tls_cert_file} and {streaming.tls_key_file}"
        raise FailedPrecondition(f"x509_key_pair_streaming: cannot load {names}: {error}") from error


def _load_self_signed(made: ssl.SSLContext, host: str) -> None:
    # The ssl module loads from files only: this one has no name and goes away with the descriptor.
    fd = os.memfd_create("stream-svc-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, _self_signed(host))
        made.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _self_signed(host: str) -> bytes:
    """Return a P-256 key and a certificate for the host, the node's name and localhost, as PEM."""
    # Imported here: cryptography costs memory that a stack without TLS need not pay.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{socket.gethostname()[:50]}@stream-svc")])
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName(socket.gethostname())]
    for address in dict.fromkeys((host, "127.0.0.1", "::1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_VALIDITY))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
