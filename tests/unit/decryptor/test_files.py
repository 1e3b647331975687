"""Reading the key directory: links and Secret mounts are followed, nothing there can stop the service."""

import os
from pathlib import Path

import pytest

from decryptor import files


def read(directory: Path, prefix: str = "") -> dict[str, files.KeyFile]:
    return {file.name: file for file in files.read_all([(directory, prefix)])}


def test_files_and_subdirectories_are_read(tmp_path: Path) -> None:
    """Every regular file counts, named by its path below the directory."""
    (tmp_path / "a.pem").write_bytes(b"one")
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "b.pem").write_bytes(b"two")

    assert {name: file.data for name, file in read(tmp_path).items()} == {"a.pem": b"one", "team/b.pem": b"two"}


def test_a_missing_directory_holds_no_keys(tmp_path: Path) -> None:
    """No key directory is not an error."""
    assert read(tmp_path / "absent") == {}


def test_a_kubernetes_secret_mount_is_read_once(tmp_path: Path) -> None:
    """Links through ..data are followed, and each key appears once under its own name."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "node.pem").write_bytes(b"key")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "node.pem").symlink_to("..data/node.pem")

    assert {name: file.data for name, file in read(tmp_path).items()} == {"node.pem": b"key"}


def test_what_is_no_file_is_reported(tmp_path: Path) -> None:
    """A FIFO, links that lead nowhere or too far, an empty and an oversized file are errors of their own."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "unreachable").symlink_to("x" * 300)
    (tmp_path / "empty").touch()
    (tmp_path / "huge").write_bytes(b"x" * (files.FILE_LIMIT + 1))
    found = read(tmp_path)

    assert found["fifo"].error == "not a regular file"
    assert found["dangling"].error.startswith("symbolic link that cannot be followed")
    assert found["unreachable"].error.startswith("symbolic link that cannot be followed")
    assert found["empty"].error == "empty file"
    assert found["huge"].error == "larger than 1048576 bytes"
    assert not any(file.data for name, file in found.items() if name != "huge" and file.error)


def test_a_loop_of_directories_ends(tmp_path: Path) -> None:
    """A link back to the directory itself is looked at once."""
    (tmp_path / "a.pem").write_bytes(b"one")
    (tmp_path / "again").symlink_to(tmp_path)

    assert list(read(tmp_path)) == ["a.pem"]


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit one entry says that the rest is ignored."""
    monkeypatch.setattr(files, "COUNT_LIMIT", 3)
    for number in range(5):
        (tmp_path / f"{number}.pem").write_bytes(b"k")
    found = files.read_all([(tmp_path, "")])

    assert len(found) == 4
    assert "more than 3 files" in found[-1].error


def test_where_keys_come_from() -> None:
    """The option wins over the credentials, they over the configured directory."""
    environ = {"CREDENTIALS_DIRECTORY": "/run/c"}

    assert files.sources("/k", environ, "/conf") == [(Path("/k"), "")]
    made = [(Path("/run/c/keys"), ""), (Path("/run/c"), "keys_"), (Path("/run/c"), "mounted_")]
    assert files.sources(None, environ, "/conf") == made
    assert files.sources(None, {}, "/conf") == [(Path("/conf"), "")]


def test_flattened_credentials_lose_their_prefix(tmp_path: Path) -> None:
    """systemd's LoadCredential=keys:<directory> makes keys_<file>; other credentials are none of ours."""
    (tmp_path / "keys_node.pem").write_bytes(b"k")
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "keys").mkdir()

    assert list(read(tmp_path, "keys_")) == ["node.pem"]


def test_key_bytes_do_not_show(tmp_path: Path) -> None:
    """repr of a file holds its size, not its content."""
    (tmp_path / "a").write_bytes(b"topsecret")

    assert "topsecret" not in repr(read(tmp_path)["a"])
