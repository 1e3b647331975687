"""References are completed as Docker and containerd complete them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from image_svc.oci import reference

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library/busybox:1", "docker.io/library/busybox:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("host:5000/a/b/c__d:V1.0-x_y", "host:5000/a/b/c__d:V1.0-x_y"),
        ("Upper/app", "Upper/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"busybox@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"busybox:1@sha256:{HEX}", f"docker.io/library/busybox@sha256:{HEX}"),
        (f"q.io/a/b@sha512:{HEX}{HEX}", f"q.io/a/b@sha512:{HEX}{HEX}"),
        ("127.0.0.1:5000/lab/x:1", "127.0.0.1:5000/lab/x:1"),
    ],
)
def test_complete_form(text: str, complete: str) -> None:
    """A short name means what Docker takes it to mean."""
    assert str(reference.parse(text)) == complete


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX,
        "Busybox",
        "user/App",
        "busybox:",
        "busybox:-x",
        f"busybox:{'t' * 129}",
        "busybox@sha256:abc",
        f"busybox@sha256:{HEX.upper()}",
        f"busybox@md5:{'a' * 32}",
        "busybox@",
        "a//b",
        "/a",
        "a/",
        "https://registry.k8s.io/pause",
        "a b",
        "host:port/app",
        f"q.io/{'a' * 256}",
        "q.io/a..b",
        "q.io/_a",
        "busybox\n",
        "büsybox",
    ],
)
def test_refused(text: str) -> None:
    """What is no reference is InvalidArgument and the message shows it."""
    with pytest.raises(InvalidArgument) as caught:
        reference.parse(text)

    assert not text or repr(text[:40])[1:-1] in str(caught.value)


@given(st.text(alphabet="aA0.:/@-_[]sha256 \n", max_size=60))
def test_parsing_ends_and_is_stable(text: str) -> None:
    """Any text is refused or has a complete form, which is its own complete form."""
    try:
        found = reference.parse(text)
    except InvalidArgument:
        return
    assert reference.parse(str(found)) == found


# The grammar of github.com/distribution/reference (regexp.go), from which names are made here.
_PART = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,6}[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_PART}(?:\.{_PART}){{0,3}}|\[[a-fA-F0-9:]{{1,12}}\])(?::[0-9]{{1,6}})?"
_PATH_PART = "[a-z0-9]{1,5}(?:(?:[._]|__|[-]{1,3})[a-z0-9]{1,5}){0,3}"
_PATH = f"{_PATH_PART}(?:/{_PATH_PART}){{0,3}}"
_TAG = "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"


def from_regex(pattern: str) -> st.SearchStrategy[str]:
    """Return texts that a pattern matches as a whole, in ASCII as Go reads it."""
    return st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)


@given(from_regex(_DOMAIN), from_regex(_PATH), from_regex(_TAG) | st.none(), st.sampled_from(["", "sha256", "sha512"]))
def test_every_name_of_the_grammar(domain: str, path: str, tag: str | None, algorithm: str) -> None:
    """What the grammar makes is read back in its parts, where the first one can be told from a path."""
    digest = f"{algorithm}:{'5e' * (32 if algorithm == 'sha256' else 64)}" if algorithm else ""
    text = f"{domain}/{path}" + (f":{tag}" if tag is not None else "") + (f"@{digest}" if digest else "")
    is_host = "." in domain or ":" in domain or domain == "localhost" or domain.lower() != domain
    if not is_host and not re.fullmatch(_PATH_PART.replace("{1,5}", "+").replace("{1,3}", "+"), domain):
        with pytest.raises(InvalidArgument):
            reference.parse(text)
        return
    found = reference.parse(text)

    wanted = domain if domain != "index.docker.io" else "docker.io"
    assert found.domain == (wanted if is_host else "docker.io")
    assert found.path == (path if is_host else f"{domain}/{path}")
    assert found.tag == ("" if digest else tag or "latest")
    assert found.digest == digest


@given(from_regex(f"{_PATH}(?::{_TAG})?"), st.sampled_from("\0 \n\t/@#$%&*()=+,;?<>|\\\"'~^`é"), st.integers(0, 60))
def test_foreign_characters_are_refused(text: str, character: str, at: int) -> None:
    """No character from outside the grammar, at any place, goes unnoticed."""
    broken = text[:at] + character + text[at:]
    if character == "/" and 0 < at < len(text) and re.fullmatch(f"{_PATH}(?::{_TAG})?", broken):
        return
    try:
        found = reference.parse(broken)
    except InvalidArgument:
        return
    assert character == "/", found


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("a" * 255, f"docker.io/library/{'a' * 247}"),
        ("docker.io/docker.io/app", "docker.io/docker.io/app:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("LOCALHOST/a", "LOCALHOST/a:latest"),
        ("a.b/c", "a.b/c:latest"),
        ("a-.b/c", ""),
        ("-a.b/c", ""),
        ("a_b.c/d", ""),  # a path of no registry to distribution/reference
        ("a__b/c", "docker.io/a__b/c:latest"),
        ("a___b/c", ""),
        ("a---b/c", "docker.io/a---b/c:latest"),
        ("a.-b/c", ""),
        ("h:/a", ""),
        ("h:5000", "docker.io/library/h:5000"),
        ("h:5000:1", ""),
        ("[::1]/a", "[::1]/a:latest"),
        ("[::1", ""),
        ("a:1:2", ""),
        ("a@sha256", ""),
        (f"a@sha256:{HEX}@sha256:{HEX}", ""),
        (f"A/b@sha256:{HEX}", f"A/b@sha256:{HEX}"),
        ("xn--n3h.com/app:1", "xn--n3h.com/app:1"),
        ("0/0:0", "docker.io/0/0:0"),
        ("a:_", "docker.io/library/a:_"),
        ("a:.", ""),
        ("a" * 63, f"docker.io/library/{'a' * 63}:latest"),
        ("a" * 64, ""),
        (HEX + "/app", f"docker.io/{HEX}/app:latest"),
    ],
)
def test_corners_of_the_grammar(text: str, complete: str) -> None:
    """Names at the edges of distribution's grammar (its reference_test.go and normalize_test.go)."""
    if complete and len(text) < 255:
        assert str(reference.parse(text)) == complete
        return
    with pytest.raises(InvalidArgument):
        reference.parse(text)


def test_names_to_give() -> None:
    """A name to be given has a tag, the latest where none is named, and no digest."""
    assert str(reference.parse_tagged("app")) == "docker.io/library/app:latest"
    assert reference.parse_tagged("host:5000/app:1").tag == "1"
    for text in (f"app@sha256:{HEX}", f"app:1@sha256:{HEX}"):
        with pytest.raises(InvalidArgument, match=r"'app.*' has a digest; expected a name with a tag or without"):
            reference.parse_tagged(text)


@pytest.mark.parametrize("text", ["", HEX, "Busybox", "app:"])
def test_what_is_no_name_has_no_complete_form(text: str) -> None:
    """An id or a malformed name is answered with nothing, where a name has its complete form."""
    assert reference.complete("app") == "docker.io/library/app:latest"
    assert reference.complete(text) == ""
