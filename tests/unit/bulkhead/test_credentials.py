"""Key files that systemd would not hand to the decryptor are found before it refuses the start."""

from pathlib import Path

import pytest

from bulkhead.cli.__main__ import main
from bulkhead.launch.credentials import TOTAL_LIMIT, complaints


def place(directory: Path, *names: str, size: int = 10) -> Path:
    """Make files in a directory."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(bytes(size))
    return directory


def test_what_it_takes(tmp_path: Path) -> None:
    """Ordinary names, directories, and what it passes over, links and hidden files of whatever name, are no trouble."""
    place(tmp_path, "node.pem", "sub/dir/other key.pem", ".hidden:x", "..2026_11_22/key.pem")
    (tmp_path / "link:x").symlink_to("node.pem")
    (tmp_path / "..data").symlink_to("..2026_11_22")

    assert complaints(tmp_path) == []
    assert complaints(tmp_path / "absent") == []


@pytest.mark.parametrize("name", ["a:b.pem", "schl\u00fcssel.pem", "new\nline", "sub:dir/key.pem", "..data/a:b"])
def test_names_it_refuses(tmp_path: Path, name: str) -> None:
    """A file with a name that is no credential's is named, in directories and in a mounted Secret too."""
    place(tmp_path, "node.pem", name)
    (complaint,) = complaints(tmp_path)

    assert f"key file {str(tmp_path / name)!a}: systemd takes names of printable ASCII without ':'" in complaint


def test_sizes_it_refuses(tmp_path: Path) -> None:
    """Names that are too long, and keys that together exceed what systemd hands over, are told with the numbers."""
    assert "more than 255 characters" in complaints(place(tmp_path / "long", "n" * 251))[0]
    big = place(tmp_path / "big", "one", "two", size=TOTAL_LIMIT // 2)
    assert f"{TOTAL_LIMIT + len('keys_onekeys_two')} bytes of keys and names" in complaints(big)[0]


def test_the_units_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`bulkhead prepare keys` ends with status 1 and the file's name, or with status 0 and no word."""
    config = tmp_path / "config.toml"
    config.write_text(f'version = 3\n[bulkhead]\ndecryption_keys_path = "{place(tmp_path / "keys", "a:b.pem")}"\n')
    assert main(["prepare", "keys", f"--config={config}"]) == 1
    assert "/keys/a:b.pem'" in capsys.readouterr().err

    (tmp_path / "keys" / "a:b.pem").rename(tmp_path / "keys" / "a.pem")
    assert main(["prepare", "keys", f"--config={config}"]) == 0
    assert capsys.readouterr().err == ""


def test_a_copy_needs_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Preparing a service without saying where its configuration goes is an error before anything is made."""
    assert main(["prepare", "decryptor"]) != 0
    assert "--to is missing" in capsys.readouterr().err
