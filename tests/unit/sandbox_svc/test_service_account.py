"""Whose token the kubelet mounts into a container."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc import service_account


def token(claims: object) -> bytes:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    return b"eyJhbGciOiJSUzI1NiJ9." + body + b".c2lnbmF0dXJl"


def mounted(place: Path, at: str = service_account.MOUNT) -> list[cri.Mount]:
    return [cri.Mount(container_path="/data", host_path="/srv"), cri.Mount(container_path=at, host_path=str(place))]


def test_the_account_of_a_projected_token(tmp_path: Path) -> None:
    """The name comes from the subject, through the links by which the kubelet swaps volumes; the path may end in /."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "token").write_bytes(token({"sub": "system:serviceaccount:payments:api", "aud": ["x"]}))
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "token").symlink_to("..data/token")

    assert service_account.of(mounted(tmp_path), "payments") == "api"
    assert service_account.of(mounted(tmp_path, service_account.MOUNT + "/"), "payments") == "api"
    assert service_account.of(mounted(tmp_path), "web") == ""


@pytest.mark.parametrize(
    "content",
    [
        b"", b"a.b.c", b"a.b", token([]), token({}), token({"sub": 5}), token({"sub": "system:node:n1"}),
        token({"sub": "system:serviceaccount:payments"}), token({"sub": "system:serviceaccount:payments:a/b"}),
        token({"sub": "system:serviceaccount:payments:api:x"}),
        token({"sub": "system:serviceaccount:payments:api", "pad": "x" * service_account.LIMIT}),
    ],
)  # fmt: skip
def test_what_is_no_token_names_nobody(tmp_path: Path, content: bytes) -> None:
    """Anything but a service account's token of a bounded size is nobody's."""
    (tmp_path / "token").write_bytes(content)

    assert service_account.of(mounted(tmp_path), "payments") == ""


def test_absent_and_odd_files_name_nobody(tmp_path: Path) -> None:
    """No mount, no file, a pipe: nobody, and nothing is waited for."""
    assert service_account.of([], "payments") == ""
    assert service_account.of(mounted(tmp_path), "payments") == ""
    os.mkfifo(tmp_path / "token")
    assert service_account.of(mounted(tmp_path), "payments") == ""


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda data: b"x." + base64.b64encode(data) + b".y"))
def test_any_bytes_are_survived(data: bytes) -> None:
    """No content makes the reader fail."""
    assert service_account.subject(data) == ("", "")
