"""hosts.toml, certificate directories and the deprecated mirrors say which hosts are asked, and how."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.config.model import Registry, RegistryTls
from bulkhead.errors import FailedPrecondition
from image_svc.registry import hosts, hosts_toml
from image_svc.registry.hosts import Host, Tls
from image_svc.registry.hosts_toml import HostsFileError


def write(root: Path, directory: str, text: str) -> Registry:
    """Put a hosts.toml into a configuration directory."""
    (root / directory).mkdir(parents=True, exist_ok=True)
    (root / directory / "hosts.toml").write_text(text)
    return Registry(config_path=(str(root),))


def test_order_and_server() -> None:
    """Hosts keep the order of the file and the server comes last, each with its own settings."""
    text = """
server = "https://upstream.example:5000/base/"
[host."https://b.example"]
  capabilities = ["pull"]
  [host."https://b.example".header]
    X-One = "1"
    X-Two = ["2", "3"]
[host."http://a.example/mirror/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
  dial_timeout = "1m30s"
"""
    tables, unknown = hosts_toml.parse(text, Path("/c/hosts.toml"))
    found = [hosts._from_table("upstream.example", table) for table in tables]

    assert [(h.origin, h.path) for h in found] == [
        ("https://b.example", "/v2"),
        ("http://a.example", "/mirror/v2"),
        ("https://upstream.example:5000", "/base/v2"),
    ]
    assert found[0].capabilities == {"pull"}
    assert found[0].header == (("X-One", "1"), ("X-Two", "2"), ("X-Two", "3"))
    assert found[1].dial_timeout == 90.0
    assert unknown == []


def test_certificates_relative_to_the_file() -> None:
    """ca and client take every shape containerd documents; relative names lie beside the file."""
    text = """
[host."https://one"]
ca = "one.crt"
client = "both.pem"
[host."https://two"]
ca = ["/abs.crt", "rel.crt"]
client = ["both.pem", "other.pem"]
[host."https://three"]
client = [["a.cert", "a.key"], ["b.pem", ""]]
skip_verify = true
"""
    one, two, three, _ = hosts_toml.parse(text, Path("/c/hosts.toml"))[0]

    assert one.ca == (Path("/c/one.crt"),)
    assert one.client == ((Path("/c/both.pem"), None),)
    assert two.ca == (Path("/abs.crt"), Path("/c/rel.crt"))
    assert two.client == ((Path("/c/both.pem"), None), (Path("/c/other.pem"), None))
    assert three.client == ((Path("/c/a.cert"), Path("/c/a.key")), (Path("/c/b.pem"), None))
    assert three.skip_verify is True


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('server = "https://x"\n[host."https://a"\n', 2, "host"),
        ('[host."https://a"]\n\ncapabilities = ["pull", "fly"]', 3, "unknown capability 'fly'"),
        ('[host."https://a"]\nskip_verify = "yes"', 2, "true or false"),
        ('[host."https://a"]\nca = 5', 2, "string"),
        ('[host."https://a"]\nclient = [["a"]]', 2, "pair"),
        ('[host."https://a"]\ndial_timeout = "soon"', 2, "duration"),
        ('[host."https://a"]\n[host."https://a".header]\nx = 1', 3, "string"),
        ('[host."https://a"]\n[host."https://a".header]\n"x y" = "1"', 3, "header name"),
        ('\n[host."https://"]\n', 2, "address"),
        ("server = 4", 1, "string"),
        ('\nserver = "https://"', 2, "address"),
        ('host = "x"', 1, "table"),
    ],
)
def test_mistakes_name_file_and_line(text: str, line: int, why: str) -> None:
    """A mistake is an error with its line, never a silent fallback."""
    with pytest.raises(HostsFileError) as caught:
        hosts_toml.parse(text, Path("/c/hosts.toml"))

    assert str(caught.value).startswith("/c/hosts.toml: ")
    assert f"at line {line}" in str(caught.value)
    assert why in str(caught.value)


def test_unknown_keys_are_told() -> None:
    """A key that containerd does not know either is told with its line and has no effect."""
    _, unknown = hosts_toml.parse('[host."https://a"]\ncapabilitys = ["pull"]', Path("/c/hosts.toml"))

    assert unknown == ["/c/hosts.toml:2: 'capabilitys' is not known and has no effect"]


@given(st.text(alphabet='[]"=.\n hostserverca:/{},#1', max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever the file holds, the answer is hosts or one kind of error."""
    try:
        tables, _ = hosts_toml.parse(text, Path("/c/hosts.toml"))
    except HostsFileError:
        return
    assert tables


def test_parse_error_fails_the_lookup(tmp_path: Path) -> None:
    """A broken file does not fall back to the upstream."""
    registry = write(tmp_path, "docker.io", "[host.")

    with pytest.raises(FailedPrecondition, match=r"hosts\.toml"):
        hosts.lookup("docker.io", registry)


def test_directory_names(tmp_path: Path) -> None:
    """`host_port_` comes before `host:port`, that before `_default`, and the first root that has one wins."""
    for name in ("_default", "h:5000", "h_5000_"):
        (tmp_path / "b" / name).mkdir(parents=True)
    roots = [tmp_path / "a", tmp_path / "b"]

    assert hosts.find_directory("h:5000", roots) == tmp_path / "b" / "h_5000_"
    (tmp_path / "b" / "h_5000_").rmdir()
    assert hosts.find_directory("h:5000", roots) == tmp_path / "b" / "h:5000"
    assert hosts.find_directory("other", roots) == tmp_path / "b" / "_default"
    assert hosts.find_directory("h:5000", roots[:1]) is None


def test_defaults() -> None:
    """Docker Hub has its own host; a registry on this machine may speak https or http and needs no certificate."""
    none = Registry(config_path=())

    assert hosts.lookup("docker.io", none) == [Host("https", "registry-1.docker.io")]
    assert hosts.lookup("quay.io", none) == [Host("https", "quay.io")]
    for name in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000", "localhost"):
        (host,) = hosts.lookup(name, none)
        assert (host.scheme, host.http_fallback, host.tls) == ("https", True, Tls(skip_verify=True))
    (port80,) = hosts.lookup("localhost:80", none)
    assert (port80.scheme, port80.http_fallback) == ("http", False)


def test_default_directory_stands_for_the_registry(tmp_path: Path) -> None:
    """_default without a server adds the image's own registry behind its hosts."""
    registry = write(tmp_path, "_default", '[host."http://mirror:1"]')

    assert [h.origin for h in hosts.lookup("quay.io", registry)] == ["http://mirror:1", "https://quay.io"]


def test_http_host_with_tls_settings(tmp_path: Path) -> None:
    """An http address with TLS settings is tried over https first, as under containerd."""
    registry = write(tmp_path, "q.io", '[host."http://m:5000"]\nskip_verify = true\n[host."http://n"]')

    mirror, plain, _ = hosts.lookup("q.io", registry)

    assert (mirror.scheme, mirror.http_fallback) == ("https", True)
    assert (plain.scheme, plain.http_fallback) == ("http", False)


def test_docker_certificates(tmp_path: Path) -> None:
    """Without hosts.toml, *.crt are authorities, *.cert and *.key the client's; a lone *.cert is an error."""
    directory = tmp_path / "q.io"
    directory.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (directory / name).write_text("x")
    registry = Registry(config_path=(str(tmp_path),))

    (host,) = hosts.lookup("q.io", registry)

    assert host.tls == Tls((directory / "ca.crt",), ((directory / "me.cert", directory / "me.key"),))
    (directory / "me.key").unlink()
    with pytest.raises(FailedPrecondition, match=r"me\.key"):
        hosts.lookup("q.io", registry)


def test_deprecated_mirrors() -> None:
    """registry.mirrors: the endpoints in order, then the upstream; "*" for registries without their own entry."""
    registry = Registry(
        config_path=(),
        mirrors={"docker.io": ("https://m.example", "localhost:5000"), "*": ("http://any:1/v2/x",)},
        tls={"m.example": RegistryTls(insecure_skip_verify=True, ca_file="/ca")},
    )

    found = hosts.lookup("docker.io", registry)

    assert [h.origin for h in found] == ["https://m.example", "http://localhost:5000", "https://registry-1.docker.io"]
    assert found[0].tls == Tls((Path("/ca"),), (), skip_verify=True)
    assert [(h.origin, h.path) for h in hosts.lookup("quay.io", registry)] == [
        ("http://any:1", "/v2/x"),
        ("https://quay.io", "/v2"),
    ]


def test_common_headers_give_way() -> None:
    """registry.headers go to every host, except where the host has the same header itself."""
    registry = Registry(config_path=(), headers={"User-Agent": ("me",), "X": ("1", "2")})

    (host,) = hosts.lookup("quay.io", registry)

    assert host.header == (("User-Agent", "me"), ("X", "1"), ("X", "2"))
