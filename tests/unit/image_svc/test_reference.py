"""References are completed as Docker and containerd complete them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from image_svc import reference

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
