import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.errors import InvalidArgument
from sandbox_svc.cni import conf


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def network(name: str = "net", **more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}], **more}


def test_files_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Only .conf, .conflist and .json are read, sorted, up to the limit; 0 is no limit."""
    write(tmp_path / "20-b.conflist", network("b"))
    write(tmp_path / "10-a.conf", {"cniVersion": "0.4.0", "name": "a", "type": "ptp"})
    write(tmp_path / "30-c.json", {"name": "c", "type": "ptp"})
    write(tmp_path / "05-kubeconfig", "not json")
    (tmp_path / "01-folder.conf").mkdir()
    assert [n["name"] for n in conf.load(tmp_path, 1).networks] == ["a"]
    assert [n["name"] for n in conf.load(tmp_path, 0).networks] == ["a", "b", "c"]
    assert conf.load(tmp_path, 2).files == ("10-a.conf", "20-b.conflist", "30-c.json")


def test_a_single_plugin_becomes_a_list(tmp_path: Path) -> None:
    """A .conf file is a list of one plugin with the file's name and version; without a version it is 0.1.0."""
    found = conf.read(write(tmp_path / "a.conf", {"name": "a", "type": "ptp", "mtu": 9000}))
    assert (found["name"], found["cniVersion"]) == ("a", "0.1.0")
    assert found["plugins"] == [{"name": "a", "type": "ptp", "mtu": 9000}]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("a.conflist", "{", "line 1, column 2"),
        ("a.conflist", "[]", "expected a JSON object"),
        ("a.conflist", network(name=""), '"name" must be'),
        ("a.conflist", network(name="a/b"), '"name" must be'),
        ("a.conflist", network(plugins=[]), "no plugins"),
        ("a.conflist", network(plugins={}), '"plugins" must be a list'),
        ("a.conflist", network(plugins=[{"type": "../evil"}]), "plugin 1"),
        ("a.conflist", network(plugins=[{"type": "ok"}, {}]), "plugin 2"),
        ("a.conflist", network(cniVersion="2.0.0"), "newer than 1.1.0"),
        ("a.conflist", network(cniVersion="one"), "not a CNI version"),
        ("a.conflist", network(disableCheck="maybe"), '"disableCheck" must be true or false'),
        ("a.conf", network(), 'no "type"'),
    ],
)
def test_a_bad_file_is_named_with_its_reason(tmp_path: Path, file: str, content: Any, reason: str) -> None:
    """Whatever is wrong, the message has the file and what was expected."""
    path = write(tmp_path / file, content)
    with pytest.raises(InvalidArgument) as caught:
        conf.read(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_bad_first_file_blocks_the_good_ones(tmp_path: Path) -> None:
    """Pods are not put on the next network because the intended one has a typing error."""
    write(tmp_path / "10-bad.conflist", "{")
    write(tmp_path / "20-good.conflist", network())
    loaded = conf.load(tmp_path, 1)
    assert loaded.networks == ()
    assert "10-bad.conflist" in loaded.problem
    write(tmp_path / "10-bad.conflist", network("first"))
    write(tmp_path / "20-good.conflist", "{")
    assert [n["name"] for n in conf.load(tmp_path, 1).networks] == ["first"]


def test_missing_and_empty_directories_are_told_apart(tmp_path: Path) -> None:
    """The problem says whether the directory or only the file is missing."""
    assert "does not exist" in conf.load(tmp_path / "none", 1).problem
    assert "no file *.conf, *.conflist, *.json in" in conf.load(tmp_path, 1).problem


def test_the_newest_version_spoken_on_both_sides_wins(tmp_path: Path) -> None:
    """cniVersions may list versions of the future; the newest known one is used."""
    data = network(cniVersion="0.4.0", cniVersions=["0.4.0", "1.0.0", "1.1.0", "2.0.0"])
    assert conf.read(write(tmp_path / "a.conflist", data))["cniVersion"] == "1.1.0"


def test_plugins_of_the_network_s_folder_are_appended(tmp_path: Path) -> None:
    """`<network>/*.conf` beside the list adds plugins, unless the list forbids it."""
    write(tmp_path / "net" / "50-extra.conf", {"type": "tuning"})
    path = write(tmp_path / "a.conflist", network())
    assert [p["type"] for p in conf.read(path)["plugins"]] == ["bridge", "tuning"]
    write(path, network(loadOnlyInlinedPlugins=True))
    assert [p["type"] for p in conf.read(path)["plugins"]] == ["bridge"]


def test_the_fingerprint_notices_every_kind_of_change(tmp_path: Path) -> None:
    """A new file, a rewritten one, a removed one and a changed folder all show; other files do not."""
    directory = tmp_path / "net.d"
    seen = [conf.fingerprint(directory)]
    write(directory / "a.conflist", network())
    seen.append(conf.fingerprint(directory))
    write(directory / "a.conflist", network("longer-name"))
    seen.append(conf.fingerprint(directory))
    write(directory / "net" / "x.conf", {"type": "tuning"})
    seen.append(conf.fingerprint(directory))
    (directory / "a.conflist").unlink()
    seen.append(conf.fingerprint(directory))
    assert len(set(seen)) == len(seen)
    write(directory / "kubeconfig", "x")
    assert conf.fingerprint(directory) == seen[-1]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """No content makes reading fail in another way than InvalidArgument."""
    path = tmp_path_factory.mktemp("conf") / "a.conflist"
    path.write_text(json.dumps({"name": "a", "plugins": data, "cniVersions": data}))
    with contextlib.suppress(InvalidArgument):
        assert conf.read(path)["plugins"]
