"""Which hosts to ask for a repository, in order, and how: hosts.toml, Docker certificate directories, mirrors.

The rules are those of containerd (docs/hosts.md; core/remotes/docker/config; the deprecated tables of
docs/cri/registry.md). Everything is read anew for each pull.
"""

import ipaddress
import logging
import posixpath
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from bulkhead.config.model import Registry
from bulkhead.errors import FailedPrecondition
from image_svc.registry import hosts_toml
from image_svc.registry.hosts_toml import CAPABILITIES, HostTable

logger = logging.getLogger(__name__)

DIAL_TIMEOUT = 30.0
DOCKER_HUB, DOCKER_HUB_HOST = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True)
class Tls:
    """How to check a server, and how to show who asks."""

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True)
class Host:
    """One endpoint: where the registry API is, what it may be asked for, how to reach it."""

    scheme: str
    #: Host name or address, with the port if the address had one.
    host: str
    #: The API's root, "/v2" unless overridden; no slash at the end.
    path: str = "/v2"
    capabilities: frozenset[str] = CAPABILITIES
    tls: Tls = Tls()
    header: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    #: Seconds to connect.
    dial_timeout: float = DIAL_TIMEOUT
    #: Try https and, where the port speaks no TLS, go on with http.
    http_fallback: bool = False
    #: The file and line, or the rule, that names this host; for people.
    source: str = field(default="", compare=False)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.host}"

    def serves(self, namespace: str) -> bool:
        """Whether this is the registry that the name stands for, rather than a mirror of it."""
        return self.host == namespace or (namespace == DOCKER_HUB and self.host == DOCKER_HUB_HOST)

    def image(self, namespace: str, path: str) -> str:
        """Return what a repository is called under this host's own name: the registry's, or that of a mirror."""
        return f"{namespace if self.serves(namespace) else self.host}/{path}"


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine by its very name (containerd, IsLocalhost)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def lookup(namespace: str, registry: Registry) -> list[Host]:
    """Return the endpoints for images of a registry's name ("docker.io", "localhost:5000"), first choice first."""
    headers = tuple((name, value.strip(" \t")) for name, values in registry.headers.items() for value in values)
    mirrors = registry.mirrors.get(namespace, registry.mirrors.get("*"))
    if mirrors is not None or namespace in registry.tls:
        return [_with(host, headers) for host in _from_mirrors(namespace, mirrors or (), registry)]
    directory = find_directory(namespace, map(Path, registry.config_path))
    tables = _tables(directory) if directory else [HostTable(source="no host configuration: the registry itself")]
    return [_with(_from_table(namespace, table), headers) for table in tables]


def find_directory(namespace: str, roots: Iterable[Path]) -> Path | None:
    """Return the first configuration directory of a registry: `host_port_`, `host:port`, else `_default`."""
    name, colon, port = namespace.rpartition(":")
    variants = [f"{name}_{port}_"] if colon and name else []
    for root in roots:
        for variant in (*variants, namespace, "_default"):
            directory = root / variant
            try:
                if stat.S_ISDIR(directory.stat().st_mode):
                    return directory
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise FailedPrecondition(f"{directory}: {error.strerror}; image-svc runs without privileges") from error
    return None


def _tables(directory: Path) -> list[HostTable]:
    loaded = hosts_toml.load(directory / "hosts.toml")
    if loaded is None:
        return [_certificates(directory)]
    tables, unknown = loaded
    for line in unknown:
        logger.warning("%s", line)
    return tables


def _certificates(directory: Path) -> HostTable:
    """Read a Docker certificate directory: *.crt are authorities, *.cert with its *.key is the client's."""
    authorities, pairs = [], []
    try:
        names = sorted(file for file in directory.iterdir() if not file.is_dir())
    except OSError as error:
        raise FailedPrecondition(f"{directory}: {error.strerror}; image-svc runs without privileges") from error
    for file in names:
        if file.suffix == ".crt":
            authorities.append(file)
        elif file.suffix == ".cert":
            key = file.with_suffix(".key")
            # Without one the key is in the same file, as containerd has it.
            pairs.append((file, key if key in names else None))
    source = (
        f"{directory}: certificates of the registry itself" if names else f"{directory}: empty, the registry itself"
    )
    return HostTable(ca=tuple(authorities), client=tuple(pairs), source=source)


def _from_table(namespace: str, table: HostTable) -> Host:
    explicit = bool(table.ca or table.client) or table.skip_verify is not None
    skip = bool(table.skip_verify)
    if table.url:
        parts = urlsplit(table.url)
        scheme, host = parts.scheme, parts.netloc.rpartition("@")[2]
        path = _api_path(parts.path, override=table.override_path)
    else:
        scheme, host, path = "https", default_host(namespace), "/v2"
        if is_loopback(host):
            # As containerd: a local registry may speak either, and nobody signs certificates for it.
            scheme = "https" if _port(host) in (None, 443) else "http"
            skip, explicit = (True, True) if _port(host) != 80 else (skip, explicit)
    fallback = scheme == "http" and explicit and _port(host) != 80
    return Host(
        scheme="https" if fallback else scheme,
        host=host,
        path=path,
        capabilities=table.capabilities,
        tls=Tls(table.ca, table.client, skip),
        header=table.header,
        dial_timeout=table.dial_timeout or DIAL_TIMEOUT,
        http_fallback=fallback,
        source=table.source,
    )


def _api_path(path: str, *, override: bool) -> str:
    clean = posixpath.normpath(path) if path else ""
    clean = "" if clean in (".", "/") else clean
    return clean if override or clean.endswith("/v2") else f"{clean}/v2"


def _port(host: str) -> int | None:
    """Return the port of an address; None for none, or for a number that no port has."""
    try:
        return urlsplit(f"//{host}").port
    except ValueError:
        return None


def default_host(namespace: str) -> str:
    """Return the address behind a registry's name."""
    return DOCKER_HUB_HOST if namespace == DOCKER_HUB else namespace


def _with(host: Host, headers: tuple[tuple[str, str], ...]) -> Host:
    """Add the configuration's `registry.headers`, which every registry gets; the host's own win."""
    own = {name.lower() for name, _ in host.header}
    merged = host.header + tuple(pair for pair in headers if pair[0].lower() not in own)
    return replace(host, header=merged)


def _from_mirrors(namespace: str, mirrors: tuple[str, ...], registry: Registry) -> list[Host]:
    """Read the deprecated `registry.mirrors` and `registry.configs.*.tls`: the upstream comes last unless listed."""
    upstream = default_host(namespace)
    where = f"registry.mirrors.{namespace if namespace in registry.mirrors else '*'!r}.endpoint (deprecated)"
    endpoints = [(_with_scheme(endpoint), where) for endpoint in mirrors]
    if all(urlsplit(endpoint).netloc not in (upstream, namespace) for endpoint, _ in endpoints):
        endpoints.append((_with_scheme(upstream), "the registry itself"))
    found = []
    for endpoint, source in endpoints:
        parts = urlsplit(endpoint)
        tls = registry.tls.get(parts.netloc) or (registry.tls.get(namespace) if parts.netloc == upstream else None)
        authority = (Path(tls.ca_file),) if tls and tls.ca_file else ()
        pair = ((Path(tls.cert_file), Path(tls.key_file)),) if tls and tls.cert_file and tls.key_file else ()
        found.append(
            Host(
                scheme=parts.scheme,
                host=parts.netloc,
                path=parts.path.rstrip("/") or "/v2",
                # containerd's CRI never pushes; what is pushed goes to the registry itself.
                capabilities=CAPABILITIES if parts.netloc in (upstream, namespace) else CAPABILITIES - {"push"},
                tls=Tls(authority, pair, bool(tls and tls.insecure_skip_verify)),
                source=source,
            )
        )
    return found


def _with_scheme(endpoint: str) -> str:
    if "://" in endpoint:
        return endpoint
    return f"{'http' if is_loopback(endpoint.partition('/')[0]) else 'https'}://{endpoint}"
