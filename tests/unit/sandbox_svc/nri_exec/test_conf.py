"""The files that name exec plugins."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import FailedPrecondition
from sandbox_svc.nri_exec import conf

#: The example of the interface's README.
README = b"""{
  "version": "0.1",
  "plugins": [
    {"type": "konfine", "conf": {"systemReserved": [0, 1]}},
    {"type": "clearcfs"}
  ]
}"""


def test_the_readme_s_example() -> None:
    """Names and configurations are taken as they stand, in their order."""
    assert conf.parse(README) == [conf.Plugin("konfine", {"systemReserved": [0, 1]}), conf.Plugin("clearcfs")]


def test_the_file_comes_before_the_directory(tmp_path: Path) -> None:
    """Of the directory only *.conf count, in the order of their names."""
    (tmp_path / "conf.json").write_text('{"plugins": [{"type": "main"}]}')
    directory = tmp_path / "resource.d"
    directory.mkdir()
    for name in ("20-b.conf", "10-a.conf"):
        (directory / name).write_text(f'{{"plugins": [{{"type": "{name[3]}"}}]}}')
    (directory / "30-c.conf.rpmsave").write_text("not read")
    found = conf.load(str(tmp_path / "conf.json"), str(directory))
    assert [plugin.type for plugin in found] == ["main", "a", "b"]


@pytest.mark.parametrize(("file", "directory"), [("", ""), ("/nonexistent/conf.json", "/nonexistent/resource.d")])
def test_nothing_configured(file: str, directory: str) -> None:
    """Neither a path that is empty nor one that is not there names a plugin, or is an error."""
    assert conf.load(file, directory) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "expected an object with version and plugins"),
        ("{", "Expecting property name"),
        ('{"version": "0.2"}', "version is '0.2', expected '0.1'"),
        ('{"plugins": {}}', "plugins is {}, expected an array"),
        ('{"plugins": ["a"]}', r"plugins\[0\].type is None, expected the name of a binary"),
        ('{"plugins": [{"type": "ok"}, {"type": "/bin/sh"}]}', r"plugins\[1\].type is '/bin/sh'"),
        ('{"plugins": [{"type": ".."}]}', r"plugins\[0\].type is '..'"),
    ],
)
def test_what_is_wrong_names_the_file(tmp_path: Path, text: str, complaint: str) -> None:
    """A file that says something else than it should stops what its plugins would guard."""
    path = tmp_path / "conf.json"
    path.write_text(text)
    with pytest.raises(FailedPrecondition, match=rf"{path}: .*{complaint}"):
        conf.load(str(path), "")


def test_sizes_have_bounds(tmp_path: Path) -> None:
    """Neither a huge file nor a file with very many plugins is followed."""
    path = tmp_path / "conf.json"
    path.write_bytes(b" " * (conf.MAX_FILE + 1))
    with pytest.raises(FailedPrecondition, match="more than 1048576 bytes"):
        conf.load(str(path), "")
    entries = ",".join(['{"type": "a"}'] * (conf.MAX_PLUGINS + 1))
    path.write_text(f'{{"plugins": [{entries}]}}')
    with pytest.raises(FailedPrecondition, match="at most 64"):
        conf.load(str(path), "")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    """Whatever a file holds, it lists plugins with plain names or is refused."""
    try:
        found = conf.parse(data)
    except ValueError:
        return
    assert all(plugin.type and "/" not in plugin.type for plugin in found)
