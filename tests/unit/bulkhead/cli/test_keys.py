"""Keys and recipients on the command line: how they are written, and what is refused by name."""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.cli import keys
from bulkhead.cli.images import recipients
from bulkhead.errors import BulkheadError, FailedPrecondition, InvalidArgument, NotFound


def opened(text: str) -> tuple[str, bytes, bytes | None]:
    """Return a key's name, its bytes and its password as the decryptor would read them."""
    with ExitStack() as held:
        name, key, password = keys._open(text, held)
        found = None if password is None else os.pread(password, 100, 0)
        return name, os.pread(key, 100, 0), found


@pytest.fixture
def key(tmp_path: Path) -> str:
    """A key's file."""
    (tmp_path / "my:key.pem").write_text("key")
    (tmp_path / "word").write_text("from a file\n")
    return str(tmp_path / "my:key.pem")


def test_ways_to_give_a_password(key: str, tmp_path: Path) -> None:
    """A colon in a file's name is no password; pass=, file=, fd= and a bare password are."""
    assert opened(key) == ("my:key.pem", b"key", None)
    assert opened(f"{key}:pass=secret") == ("my:key.pem", b"key", b"secret")
    assert opened(f"{key}:secret") == ("my:key.pem", b"key", b"secret")
    assert opened(f"{key}:file={tmp_path}/word") == ("my:key.pem", b"key", b"from a file\n")
    with (tmp_path / "word").open() as word:
        assert opened(f"{key}:fd={word.fileno()}")[2] == b"from a file\n"


def test_what_is_not_there_is_named_without_the_password(key: str) -> None:
    """A missing key, password file or descriptor is an error that says which, and never the password."""
    for text, kind in (("/no/key:pass=hush", NotFound), (f"{key}:file=/no/word", NotFound)):
        with pytest.raises(kind, match="/no/") as error:
            opened(text)
        assert "hush" not in str(error.value)
    for number in ("4000000", "x", "-1"):
        with pytest.raises(InvalidArgument, match="no descriptor that is open"):
            opened(f"{key}:fd={number}")


def test_a_refusal_is_told_as_it_is() -> None:
    """What services put before the decryptor's words is left out; other errors are as they are."""
    refusal = "you are not authorized to use this image: no"
    assert keys.error_of(FailedPrecondition(f"preparing the snapshot: {refusal}")) == refusal
    assert keys.error_of(FailedPrecondition(refusal)) == refusal
    assert keys.error_of(NotFound("x: y")) == "x: y"


def read(*texts: str, homedir: str = "") -> list[tuple[str, bytes, str]]:
    """Return scheme, key and name of recipients."""
    found = recipients.read(argparse.Namespace(recipient=list(texts), gpg_homedir=homedir))
    return [(each.scheme, each.key, each.name) for each in found]


def test_recipients(key: str) -> None:
    """Files are read for jwe, pkcs7 and pkcs11; a provider has a name and, after another colon, a value."""
    assert read(f"jwe:{key}", f"pkcs11:{key}") == [("jwe", b"key", ""), ("pkcs11", b"key", "")]
    assert read("provider:vault", "provider:vault:a:b") == [("provider", b"", "vault"), ("provider", b"a:b", "vault")]


@pytest.mark.parametrize("text", ["jwe", "jwe:", "rot13:x", ":x", "", "provider:"])
def test_malformed_recipients(text: str) -> None:
    """What is no recipient is refused, and quoted."""
    with pytest.raises(InvalidArgument, match="expected SCHEME:WHO"):
        read(text)


def test_recipients_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory, too large a file, a gpg without keys."""
    (tmp_path / "large").write_bytes(b"x" * (recipients._LIMIT + 1))
    for text, kind in (("jwe:/no/file", NotFound), (f"jwe:{tmp_path}", InvalidArgument)):
        with pytest.raises(kind):
            read(text)
    with pytest.raises(InvalidArgument, match="more than"):
        read(f"pkcs7:{tmp_path}/large")
    with pytest.raises(NotFound, match="no public keys"):
        read("pgp:me@example.com", homedir=str(tmp_path))


@given(st.text(max_size=60))
def test_any_recipient_is_read_or_refused(text: str) -> None:
    """No text makes the reader fail in another way."""
    if text.startswith("pgp:"):
        return
    try:
        read(text)
    except BulkheadError:
        pass
    except ValueError as error:
        assert "null" in str(error)
