"""The keys of a directory: passwords stand beside them, and they are read anew when the files change."""

import logging
import os
from pathlib import Path

import pytest

from decryptor import files
from decryptor.files import KeyFile
from decryptor.keyring import Keyring
from decryptor.watch import Watch


def ring(formats: dict[str, bytes], **more: bytes) -> Keyring:
    """Return a ring of files by name; two underscores stand for a dot."""
    return Keyring([KeyFile(name.replace("__", "."), data) for name, data in more.items()])


def test_a_password_beside_its_key(formats: dict[str, bytes]) -> None:
    """`<file>.password` opens the file, its last line end not being part of it, and is no key of its own."""
    for text in (b"secret", b"secret\n", b"secret\r\n"):
        keys = ring(formats, k__pem=formats["encrypted-pkcs8.pem"], k__pem__password=text)
        assert [(entry.file, entry.state) for entry in keys.entries] == [("k.pem", "loaded")]


def test_a_wrong_password_disables_its_key_alone(formats: dict[str, bytes]) -> None:
    """The key with a wrong password, and a password without a key, are complained of without being quoted."""
    keys = ring(
        formats,
        a__pem=formats["encrypted-pkcs8.pem"],
        a__pem__password=b"guess",
        b__pem=formats["pkcs8.pem"],
        lost__password=b"hidden",
    )

    assert keys.complaints() == [
        "key file 'a.pem': a private key that its password does not open",
        "key file 'lost.password': a password without a key file beside it",
    ]
    assert keys.describe() == "1 private-key"


def test_an_unreadable_password_is_named(formats: dict[str, bytes]) -> None:
    """Why a password cannot be read is why its key cannot be used."""
    keys = Keyring([KeyFile("k.pem", formats["encrypted-pkcs8.pem"]), KeyFile("k.pem.password", error="empty file")])

    assert "'k.pem.password' cannot be used: empty file" in keys.complaints()[0]


def test_what_a_file_holds_besides(formats: dict[str, bytes]) -> None:
    """A certificate in the file of its key counts as one of the ring's."""
    keys = ring(formats, both__pem=formats["chain-and-key.pem"])

    assert [entry.key.kind for entry in keys.private()] == ["private-key"]
    assert [entry.key.kind for entry in keys.certificates()] == ["certificate"]


def test_only_what_changed_is_told(formats: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    """After a reload the log names keys that came and keys that went, not those that stayed."""
    before = ring(formats, stays=formats["pkcs8.pem"], goes=formats["sec1.pem"])
    with caplog.at_level(logging.INFO):
        ring(formats, stays=formats["pkcs8.pem"], comes=formats["ec.jwk"]).publish(before)

    told = [record.getMessage() for record in caplog.records]
    assert [text.split(":")[0] for text in told] == ["key file 'comes'", "key file 'goes' is gone"]


def swap(directory: Path, name: str, data: bytes) -> None:
    """Change a mounted Secret as the kubelet does: a new directory, and `..data` renamed over the old link."""
    (directory / name).mkdir()
    (directory / name / "node.pem").write_bytes(data)
    (directory / "..new").symlink_to(name)
    os.replace(directory / "..new", directory / "..data")
    if not (directory / "node.pem").is_symlink():
        (directory / "node.pem").symlink_to("..data/node.pem")


def test_a_swapped_secret_is_seen(tmp_path: Path) -> None:
    """A Secret's new contents, a file added, changed and taken away each are seen once."""
    swap(tmp_path, "..one", b"old")
    told: list[list[str]] = []
    places = [(tmp_path, "")]
    watch = Watch(places, lambda: told.append([file.name for file in files.read_all(places)]))

    assert not watch.look()
    swap(tmp_path, "..two", b"new")
    assert watch.look()
    assert not watch.look()
    (tmp_path / "b.pem").write_bytes(b"x")
    assert watch.look()
    (tmp_path / "b.pem").write_bytes(b"longer")
    assert watch.look()
    (tmp_path / "b.pem").unlink()
    assert watch.look()
    assert told == [["node.pem"], ["b.pem", "node.pem"], ["b.pem", "node.pem"], ["node.pem"]]


def test_a_directory_that_is_away_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty moment, while a fresh copy is moved into place, takes no key away."""
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "a.pem").write_bytes(b"x")
    told: list[int] = []
    watch = Watch([(keys, "")], lambda: told.append(1))
    os.rename(keys, tmp_path / "away")
    monkeypatch.setattr("decryptor.watch.time.sleep", lambda _: os.rename(tmp_path / "away", keys))
    watch.look()

    assert (keys / "a.pem").exists()
    assert watch._seen == files.signature([(keys, "")]) != ()
