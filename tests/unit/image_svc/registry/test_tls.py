"""TLS: authorities, client certificates, skip_verify, and which hosts may do without."""

import datetime
import ipaddress
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bulkhead.config.model import Registry
from bulkhead.errors import FailedPrecondition, Unavailable
from image_svc.oci import reference
from image_svc.patience import Patience
from image_svc.registry.connections import Connections
from image_svc.registry.hosts import Host, Tls
from image_svc.registry.repository import Descriptor, Repository, Retry
from support.fake_registry import FakeRegistry, fake_registry
from support.images import digest
from support.tcp_proxy import tcp_proxy

#: A name that is not loopback by itself and that hosts.toml sends to the fake registry.
NAME = "registry.example"


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write both as PEM and return their paths."""
        cert, key = directory / f"{name}.cert", directory / f"{name}.key"
        cert.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert, key


def certify(name: str, issuer: Pair | None = None) -> Pair:
    """Make a certificate, signed by an issuer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Return the authority's certificate; the server's is server.cert, a client's client.cert, with their keys."""
    ca = certify("authority")
    certify("server", ca).write(tmp_path, "server")
    certify("client", ca).write(tmp_path, "client")
    return ca.write(tmp_path, "ca")[0]


@pytest.fixture
def secure(authority: Path, tmp_path: Path) -> Iterator[FakeRegistry]:
    """Run a registry over TLS that takes anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.cert", tmp_path / "server.key")
    with fake_registry(context) as made:
        made.push_manifest("app", "1", b"{}", "application/vnd.oci.image.manifest.v1+json")
        yield made


def resolve(tmp_path: Path, toml: str, name: str = NAME) -> None:
    """Resolve app:1 of a registry under a hosts.toml."""
    directory = tmp_path / "certs.d" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hosts.toml").write_text(toml)
    registry = Registry(config_path=(str(tmp_path / "certs.d"),))
    repository = Repository(reference.parse(f"{name}/app:1"), registry, retry=Retry(rounds=1))
    with repository.held():
        repository.resolve(Patience(5.0, "resolve"))


def test_unknown_authority(secure: FakeRegistry, tmp_path: Path) -> None:
    """A certificate of an authority that nobody vouches for is refused and not retried."""
    with pytest.raises(Unavailable, match=rf"https://{secure.address}: .*certificate verify failed"):
        resolve(tmp_path, f'server = "https://{secure.address}"')
    assert secure.seen == []


def test_authority_of_the_file(secure: FakeRegistry, authority: Path, tmp_path: Path) -> None:
    """`ca` names the authority."""
    resolve(tmp_path, f'server = "https://{secure.address}"\nca = "{authority}"')

    assert secure.seen


def test_certificate_of_the_server_itself(secure: FakeRegistry, tmp_path: Path) -> None:
    """`ca` may name what is no root: the server's own certificate or an intermediate authority, as with containerd."""
    resolve(tmp_path, f'server = "https://{secure.address}"\nca = "{tmp_path}/server.cert"')

    assert secure.seen


def test_skip_verify(secure: FakeRegistry, tmp_path: Path) -> None:
    """skip_verify takes any certificate."""
    resolve(tmp_path, f'server = "https://{secure.address}"\nskip_verify = true')

    assert secure.seen


def test_client_certificate(authority: Path, tmp_path: Path) -> None:
    """A registry that wants a certificate gets the one of the file, in each of its forms."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.cert", tmp_path / "server.key")
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "client.cert").read_bytes() + (tmp_path / "client.key").read_bytes())
    with fake_registry(context) as made:
        made.push_manifest("app", "1", b"{}", "application/vnd.oci.image.manifest.v1+json")
        head = f'server = "https://{made.address}"\nca = "{authority}"\n'
        with pytest.raises(Unavailable):
            resolve(tmp_path, head)
        resolve(tmp_path, f'{head}client = "{both}"')
        resolve(tmp_path, f'{head}client = [["{tmp_path}/client.cert", "{tmp_path}/client.key"]]')

        assert len(made.seen) == 2


@pytest.mark.parametrize("key", ["ca", "client"])
def test_unreadable_certificate_is_named(secure: FakeRegistry, tmp_path: Path, key: str) -> None:
    """A certificate that is not there fails the pull and is named."""
    with pytest.raises(FailedPrecondition, match=r"certs\.d/registry\.example/missing\.pem"):
        resolve(tmp_path, f'server = "https://{secure.address}"\n{key} = "missing.pem"')


@pytest.mark.parametrize("key", ["ca", "client"])
@pytest.mark.parametrize("there", ["missing", "pipe", "nonsense"])
def test_a_mirror_is_not_passed_over_for_its_certificate(
    secure: FakeRegistry, authority: Path, tmp_path: Path, key: str, there: str
) -> None:
    """A file that a host's table names and that is no certificate fails the pull, with that line."""
    file = tmp_path / "file.pem"
    if there == "pipe":
        os.mkfifo(file)
    elif there == "nonsense":
        file.write_text("nonsense")
    upstream = f'server = "https://{secure.address}"\nca = "{authority}"\n'
    with pytest.raises(FailedPrecondition, match=rf"hosts\.toml:3: host: https://127\.0\.0\.1:1: .*{file}: "):
        resolve(tmp_path, f'{upstream}[host."https://127.0.0.1:1"]\n{key} = "{file}"')


def test_docker_certificates(secure: FakeRegistry, authority: Path, tmp_path: Path) -> None:
    """A directory with nothing but *.crt is enough."""
    directory = tmp_path / "docker" / secure.address
    directory.mkdir(parents=True)
    (directory / "ca.crt").write_bytes(authority.read_bytes())
    registry = Registry(config_path=(str(tmp_path / "docker"),))
    repository = Repository(reference.parse(f"{secure.address}/app:1"), registry, retry=Retry(rounds=1))

    with repository.held():
        repository.resolve(Patience(5.0, "resolve"))

    assert secure.seen


def test_local_registry_over_tls(secure: FakeRegistry) -> None:
    """A registry on this machine is spoken to over TLS if it speaks it, whoever signed its certificate."""
    repository = Repository(reference.parse(f"{secure.address}/app:1"), Registry(config_path=()), retry=Retry(rounds=1))

    with repository.held():
        repository.resolve(Patience(5.0, "resolve"))

    assert secure.seen


def test_remote_registry_never_falls_back(registry: FakeRegistry, tmp_path: Path) -> None:
    """An https address is never spoken to in the clear."""
    with pytest.raises(Unavailable, match="RegistryUnavailable"):
        resolve(tmp_path, f'server = "https://{registry.address}"')
    assert registry.seen == []


def test_wrong_certificate_is_no_reason_for_plain_http(secure: FakeRegistry, tmp_path: Path) -> None:
    """A host that may speak http and does speak TLS, with a certificate that does not pass, is given up."""
    other = certify("other").write(tmp_path, "other")[0]

    with pytest.raises(Unavailable, match="certificate verify failed"):
        resolve(tmp_path, f'server = "http://{secure.address}"\nca = "{other}"')
    assert secure.seen == []


def test_leniency_ends_at_this_machine() -> None:
    """Another host that a local registry sends us to must show a certificate that passes."""
    host = Host("https", "127.0.0.1:5000", tls=Tls(skip_verify=True))
    connections = Connections(host, 1.0)

    own, other = (connections._client(httpx.URL(url)) for url in ("https://127.0.0.1:5000/", "https://auth.example/"))

    assert verifies(own) is False
    assert verifies(other) is True
    connections.close()


def verifies(client: httpx.Client) -> bool:
    """Tell whether a client checks certificates."""
    context = client._transport._pool._ssl_context  # type: ignore[attr-defined] # httpx shows it nowhere
    return bool(context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname)


def test_a_record_that_comes_in_two_parts(secure: FakeRegistry) -> None:
    """What TLS holds of a record is not waited for at the kernel, which has passed it on: a download comes to its end.

    It is one request, wherever near the end of a fast download the network makes a pause.
    """
    blob = bytes(range(256)) * 4096
    secure.blobs[digest(blob)] = blob
    for before_end in (2_000, 70_000, 250_000):
        back = partial(_pause, len(blob) - before_end)
        with tcp_proxy(secure.address, partial(_pause, sys.maxsize), back) as address:
            name = reference.parse(f"{address}/app:1")
            repository = Repository(name, Registry(config_path=()), retry=Retry(rounds=1, read_timeout=20.0))
            arrived = bytearray()
            before = len(secure.seen)

            with repository.held():
                wanted = Descriptor(digest(blob), len(blob), "")
                repository.download(wanted, arrived.__len__, arrived.extend, Patience(60.0, "download"))

        assert bytes(arrived) == blob
        assert len(secure.seen) == before + 1


def _pause(after: int, source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes out of a socket, with a pause after so many bytes."""
    passed = 0
    with source, sink, suppress(OSError):
        while data := source.recv(65536):
            if passed < after <= passed + len(data):
                sink.sendall(data[: after - passed])
                time.sleep(0.2)
                sink.sendall(data[after - passed :])
            else:
                sink.sendall(data)
            passed += len(data)
