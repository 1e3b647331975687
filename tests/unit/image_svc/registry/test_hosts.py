"""hosts.toml, certificate directories and the deprecated mirrors say which hosts are asked, and how."""

import json
import os
from collections.abc import Callable
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
        ('[host."https://a"]\n[host."https://a".header]\nx = "a\\u007fb"', 3, "no header may"),
        ('\n[host."https://"]\n', 2, "address"),
        ('\n[host."ftp://mirror"]\n', 2, "address"),
        ('server = "httpx://mirror"', 1, "address"),
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


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path)])
def test_what_is_no_file_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A pipe under that name is not waited for."""
    make(tmp_path / "hosts.toml")
    with pytest.raises(HostsFileError, match=r"hosts\.toml: (not a regular file|Is a directory|Too many levels)"):
        hosts_toml.load(tmp_path / "hosts.toml")


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
    for name in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.1.2.3:5000"):
        (host,) = hosts.lookup(name, none)
        assert (host.scheme, host.http_fallback, host.tls) == ("https", True, Tls(skip_verify=True))
    for name in ("localhost", "localhost:443", "[::1]"):
        (host,) = hosts.lookup(name, none)
        assert (host.scheme, host.http_fallback, host.tls) == ("https", False, Tls(skip_verify=True))
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
    """Without hosts.toml, *.crt are authorities, *.cert and *.key the client's; a lone *.cert holds its key itself."""
    directory = tmp_path / "q.io"
    directory.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (directory / name).write_text("x")
    registry = Registry(config_path=(str(tmp_path),))

    (host,) = hosts.lookup("q.io", registry)

    assert host.tls == Tls((directory / "ca.crt",), ((directory / "me.cert", directory / "me.key"),))
    (directory / "me.key").unlink()
    (directory / "sub.crt").mkdir()
    (alone,) = hosts.lookup("q.io", registry)
    assert alone.tls == Tls((directory / "ca.crt",), ((directory / "me.cert", None),))


def test_deprecated_mirrors() -> None:
    """registry.mirrors: the endpoints in order, then the upstream; "*" for registries without their own entry."""
    registry = Registry(
        config_path=(),
        mirrors={"docker.io": ("https://m.example", "localhost:5000"), "*": ("http://any:1/v2/x",)},
        tls={"m.example": RegistryTls(insecure_skip_verify=True, ca_file="/ca")},
    )

    found = hosts.lookup("docker.io", registry)

    assert ["push" in h.capabilities for h in found] == [False, False, True]
    assert [h.origin for h in found] == ["https://m.example", "http://localhost:5000", "https://registry-1.docker.io"]
    assert found[0].tls == Tls((Path("/ca"),), (), skip_verify=True)
    assert [(h.origin, h.path) for h in hosts.lookup("quay.io", registry)] == [
        ("http://any:1", "/v2/x"),
        ("https://quay.io", "/v2"),
    ]


def test_common_headers_give_way() -> None:
    """registry.headers go to every host, except where the host has the same header itself."""
    registry = Registry(config_path=(), headers={"User-Agent": ("me ",), "X": ("1", "\t2")})

    (host,) = hosts.lookup("quay.io", registry)

    assert host.header == (("User-Agent", "me"), ("X", "1"), ("X", "2"))


@pytest.mark.parametrize("endpoint", ["https://docker.io", "https://registry-1.docker.io"])
def test_upstream_among_the_mirrors(endpoint: str) -> None:
    """An upstream that is listed as a mirror keeps its place and is not added once more."""
    registry = Registry(config_path=(), mirrors={"docker.io": (endpoint, "https://m.example")})

    assert [h.origin for h in hosts.lookup("docker.io", registry)] == [endpoint, "https://m.example"]


def test_read_anew_for_each_pull(tmp_path: Path) -> None:
    """A changed file counts from the next lookup on, also one that comes or goes."""
    registry = write(tmp_path, "q.io", '[host."http://one"]')
    assert hosts.lookup("q.io", registry)[0].origin == "http://one"
    write(tmp_path, "q.io", '[host."http://two"]')
    assert hosts.lookup("q.io", registry)[0].origin == "http://two"
    (tmp_path / "q.io" / "hosts.toml").write_text("")
    assert [h.origin for h in hosts.lookup("q.io", registry)] == ["https://q.io"]
    (tmp_path / "q.io" / "hosts.toml").unlink()
    assert [h.origin for h in hosts.lookup("q.io", registry)] == ["https://q.io"]


def test_sources_name_file_and_line(tmp_path: Path) -> None:
    """Every host says what named it."""
    registry = write(
        tmp_path, "q.io", '\nserver = "https://s"\n[host."http://one"]\n\n[host."two"]\nskip_verify = true\n'
    )
    path = tmp_path / "q.io" / "hosts.toml"

    assert [h.source for h in hosts.lookup("q.io", registry)] == [
        f"{path}:3: host",
        f"{path}:5: host",
        f"{path}:2: server",
    ]
    assert hosts.lookup("other.io", registry)[0].source == "no host configuration: the registry itself"


def test_file_that_is_not_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is named, with the line."""
    registry = write(tmp_path, "q.io", "")
    (tmp_path / "q.io" / "hosts.toml").write_bytes(b"# fine\nserver = '\xff'")

    with pytest.raises(HostsFileError, match=r"hosts\.toml: not UTF-8 \(at line 2\)"):
        hosts.lookup("q.io", registry)


def test_unreadable_directory(tmp_path: Path) -> None:
    """Something in place of a directory that cannot be read is an error that names it, not a silent upstream."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    with pytest.raises(FailedPrecondition, match=r"q\.io"):
        hosts.find_directory("q.io", [tmp_path / "loop"])
    (tmp_path / "q.io").mkdir()
    (tmp_path / "q.io" / "hosts.toml").mkdir()
    with pytest.raises(HostsFileError, match=r"hosts\.toml: Is a directory"):
        hosts.lookup("q.io", Registry(config_path=(str(tmp_path),)))


@given(st.text(alphabet="aA0.:[]-_", max_size=30))
def test_any_name_has_hosts(name: str) -> None:
    """Every name that a reference may begin with has at least one host."""
    assert hosts.lookup(name, Registry(config_path=()))


_SCALARS = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.just("10s"), st.just("pull"))
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=3), st.lists(st.lists(_SCALARS, max_size=3), max_size=2))
_OPTIONS = st.dictionaries(
    st.sampled_from(["capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout", "x"]),
    st.one_of(_VALUES, st.dictionaries(st.text(max_size=5), _VALUES, max_size=2)),
    max_size=3,
)


def toml(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


@given(st.dictionaries(st.text(max_size=20), _OPTIONS, max_size=3), _OPTIONS, st.text(max_size=20))
def test_any_options_are_read_or_refused(
    tables: dict[str, dict[str, object]], top: dict[str, object], server: str
) -> None:
    """Whatever the options hold, the answer is hosts or one kind of error, which names the file and a line."""
    lines = [f"server = {toml(server)}", *(f"{key} = {toml(value)}" for key, value in top.items())]
    for url, options in tables.items():
        lines += [f"[host.{toml(url)}]", *(f"{key} = {toml(value)}" for key, value in options.items())]
    try:
        found, _ = hosts_toml.parse("\n".join(lines), Path("/c/hosts.toml"))
    except HostsFileError as error:
        assert str(error).startswith("/c/hosts.toml: ")
        assert "line " in str(error)
        return
    assert [hosts._from_table("q.io", table) for table in found]
