"""The configuration reader: containerd's files as they are, and errors that name file, line and key."""

import dataclasses
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import config
from bulkhead.config import render
from bulkhead.config.duration import parse_duration
from bulkhead.config.resolved import read_resolved, resolved_for
from bulkhead.errors import BulkheadError, InvalidArgument, NotFound

V2 = 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n'


def write(tmp_path: Path, text: str, name: str = "config.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_default_file_states_the_defaults(tmp_path: Path) -> None:
    """Loading the printed defaults gives what loading nothing gives."""
    loaded = config.examine(write(tmp_path, render.default_file()))

    unhonoured = [line for line in loaded.warnings if not line.endswith("not yet honoured")]
    assert unhonoured == []
    assert dataclasses.replace(loaded.config, path="") == config.Config(
        runtime=dataclasses.replace(
            config.Config().runtime, runtimes={"runc": config.model.RuntimeHandler(name="runc")}
        )
    )


def test_version_2_options_reach_their_fields(tmp_path: Path) -> None:
    """The one CRI table of version 2 fills the same model as the three of version 3."""
    two = write(
        tmp_path,
        V2
        + 'sandbox_image = "r/pause:1"\nstream_idle_timeout = "1h30m"\nmax_container_log_line_size = -1\n'
        + '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'
        + '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]\nBinaryName = "/x/crun"\n'
        + '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/x/bin"\n',
    )
    three = write(
        tmp_path,
        "version = 3\n"
        '[plugins."io.containerd.grpc.v1.cri"]\nstream_idle_timeout = "1h30m"\n'
        '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n'
        '[plugins."io.containerd.cri.v1.images".pinned_images]\nsandbox = "r/pause:1"\n'
        '[plugins."io.containerd.cri.v1.runtime"]\nmax_container_log_line_size = -1\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun.options]\nBinaryName = "/x/crun"\n'
        '[plugins."io.containerd.cri.v1.runtime".cni]\nbin_dirs = ["/x/bin"]\n',
        "three.toml",
    )

    from_two, from_three = config.load(two), config.load(three)

    assert from_two.images.sandbox_image == "r/pause:1"
    assert from_two.streaming.stream_idle_timeout == 5400.0
    assert from_two.runtime.cni.bin_dirs == ("/x/bin",)
    assert from_two.runtime.runtimes["crun"].options == {"BinaryName": "/x/crun"}
    assert from_two.runtime == from_three.runtime
    assert from_two.images == from_three.images


@pytest.mark.parametrize("version", [2, 3])
def test_nri_options_have_containerds_names(tmp_path: Path, version: int) -> None:
    """The NRI table is the same in versions 2 and 3, the default validator's included."""
    table = '[plugins."io.containerd.nri.v1.nri"'
    loaded = config.load(
        write(
            tmp_path,
            f"version = {version}\n"
            f'{table}]\ndisable = true\ndisable_connections = true\nplugin_path = "/x/p"\nplugin_config_path = "/x/c"\n'
            'socket_path = "/x/nri.sock"\nplugin_registration_timeout = "1m"\nplugin_request_timeout = "1500ms"\n'
            f"{table}.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n"
            'reject_namespace_adjustment = true\nrequired_plugins = ["10-a", "b"]\n'
            'tolerate_missing_plugins_annotation = "x.y/z"\n',
        )
    ).nri

    assert loaded == config.model.Nri(
        disable=True,
        disable_connections=True,
        plugin_path="/x/p",
        plugin_config_path="/x/c",
        socket_path="/x/nri.sock",
        plugin_registration_timeout=60.0,
        plugin_request_timeout=1.5,
        default_validator=config.model.NriValidator(
            enable=True,
            reject_oci_hook_adjustment=True,
            reject_namespace_adjustment=True,
            required_plugins=("10-a", "b"),
            tolerate_missing_plugins_annotation="x.y/z",
        ),
    )


@pytest.mark.parametrize("version", [2, 3])
def test_image_verifier_options_have_containerds_names(tmp_path: Path, version: int) -> None:
    """The table of image verifiers is containerd's, in versions 2 and 3."""
    table = '[plugins."io.containerd.image-verifier.v1.bindir"]'
    text = f'version = {version}\n{table}\nbin_dir = "/x"\nmax_verifiers = -1\nper_verifier_timeout = "1m"\n'

    assert config.load(write(tmp_path, text)).image_verifier == config.model.ImageVerifier("/x", -1, 60.0)


def test_required_plugins_that_nobody_checks_are_warned_of(tmp_path: Path) -> None:
    """As in containerd, names of required plugins count only where the validator is on: a silent no is said aloud."""
    table = 'version = 3\n[plugins."io.containerd.nri.v1.nri".default_validator]\nrequired_plugins = ["guard"]\n'

    assert any(":3: " in line and "no effect" in line for line in config.examine(write(tmp_path, table)).warnings)
    assert config.examine(write(tmp_path, table + "enable = true\n")).warnings == []


def test_an_empty_handler_table_is_a_handler(tmp_path: Path) -> None:
    """A runtime's table without a key is a handler with every default."""
    table = '[plugins."io.containerd.grpc.v1.cri".containerd'
    loaded = config.load(write(tmp_path, f'{V2}{table}]\ndefault_runtime_name = "x"\n{table}.runtimes.x]\n'))

    assert loaded.runtime.runtimes["x"] == config.model.RuntimeHandler(name="x")


def test_version_1_uses_the_short_plugin_name(tmp_path: Path) -> None:
    """A file without a version is version 1, whose CRI table is plugins.cri."""
    loaded = config.load(write(tmp_path, '[plugins.cri]\nsandbox_image = "r/p:2"\n'))

    assert loaded.images.sandbox_image == "r/p:2"


def test_data_stands_apart_from_containerds(tmp_path: Path) -> None:
    """With containerd's root and state, everything of ours stands below io.bulkhead."""
    loaded = config.load(write(tmp_path, 'version = 2\nroot = "/var/lib/containerd"\nstate = "/run/containerd"\n'))

    assert (str(loaded.root), str(loaded.state)) == (
        "/var/lib/containerd/io.bulkhead",
        "/run/containerd/io.bulkhead",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (V2 + "enable_cdi = 1\n", ':3: plugins."io.containerd.grpc.v1.cri".enable_cdi is 1, expected true or false'),
        (V2 + "sandbox_imge = 'x'\n", ':3: unknown key plugins."io.containerd.grpc.v1.cri".sandbox_imge'),
        (V2 + 'stream_idle_timeout = "4 hours"\n', "expected a Go duration"),
        (V2 + 'stream_server_port = "70000"\n', "expected a port number"),
        (V2 + "stream_server_port = 10010\n", "expected a string"),
        (V2 + "[plugins.'io.containerd.grpc.v1.cri'.cni]\nip_pref = 'ipv5'\n", ":4: plugins"),
        (V2 + "cni = 3\n", "expected a table"),
        ('version = 3\n[plugins."io.containerd.nri.v1.nri"]\nplugin_request_timeout = "0s"\n', "expected more than 0"),
        ('version = 2\n[plugins."io.containerd.nri.v1.nri".default_validator]\nrequire = 1\n', "this table knows"),
        ("version = 9\n", ":1: version is 9, expected 1 to 3"),
        ('root = "var/lib"\n', "expected an absolute path"),
        ('state = "/run/../x"\n', "expected an absolute path"),
        ("[bulkhead]\nmetric_ports = 1\n", ":2: unknown key bulkhead.metric_ports"),
        ("[bulkhead.metrics_ports]\nimage-svc = 70000\n", "expected a port"),
        ("[bulkhead.metrics_ports]\nnginx = 1\n", "unknown key bulkhead.metrics_ports.nginx"),
        ("[bulkhead.metrics_ports]\nimage-svc = 9470\n", "two services have the same port"),
        ('[bulkhead]\npull_timeout = "soon"\n', "expected a Go duration"),
        ("[bulkhead]\npull_timeout = 0\n", "expected seconds above 0"),
        (
            "[bulkhead]\ndecryptor_silence = inf\n",
            "decryptor_silence is inf, expected seconds above 0, at most 2000000",
        ),
        (
            '[bulkhead]\nkey_timeout = "10000h"\n',
            "key_timeout is 36000000.0, expected seconds above 0, at most 2000000",
        ),
        ("[bulkhead]\npull_minimum_rate = true\n", "expected a whole number"),
        ("[bulkhead]\nimport_max_bytes = 0\n", "expected a whole number above 0"),
        ("a = 1\na = 2\n", "not valid TOML"),
        ("imports = 3\n", "expected an array of strings"),
        ('version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd]\ndefault_runtime_name = "kata"\n', "kata"),
        ('version = 3\n[plugins."io.containerd.cri.v1.runtimes"]\n', "is not a table of this version"),
        (V2 + '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.x]\nsandboxer = "shim"\n', "not supported"),
        (V2 + '[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]\ntls_cert_file = "/c"\n', "both be set"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    """An error holds the file, and where there is one the line, the key, the value and what was expected."""
    path = write(tmp_path, text)

    with pytest.raises(InvalidArgument) as caught:
        config.load(path)

    assert said in str(caught.value)


def test_a_secret_is_not_in_the_error(tmp_path: Path) -> None:
    """A credential of the wrong type is reported without its value."""
    text = V2 + '[plugins."io.containerd.grpc.v1.cri".registry.configs."r.io".auth]\npassword = 12345678\n'

    with pytest.raises(InvalidArgument) as caught:
        config.load(write(tmp_path, text))

    assert "12345678" not in str(caught.value)
    assert "password" in str(caught.value)


def test_deprecated_and_foreign_keys_warn(tmp_path: Path) -> None:
    """What containerd knew warns with file and line; another plugin's table is one line."""
    loaded = config.examine(
        write(
            tmp_path,
            'disable_plugins = ["cri"]\n'
            + V2
            + 'disable_tcp_service = true\n[plugins."io.containerd.grpc.v1.cri".containerd]\nno_pivot = false\n'
            + '[plugins."io.containerd.snapshotter.v1.zfs"]\nroot_path = "/x"\n[metrics]\naddress = "127.0.0.1:1"\n',
        )
    )

    said = [line.partition("config.toml:")[2] for line in loaded.warnings]
    assert [line.partition(":")[0] for line in said] == ["1", "4", "6", "7", "10"]


def test_misplaced_options_of_the_guide_warn(tmp_path: Path) -> None:
    """The guide prints x509_key_pair_streaming in the middle of its parent; what lands there only warns."""
    loaded = config.examine(
        write(
            tmp_path,
            V2
            + '[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]\ntls_cert_file = ""\n'
            + "tls_key_file = ''\nmax_container_log_line_size = 5\n",
        )
    )

    assert loaded.config.runtime.max_container_log_line_size == 16384
    assert "where it has no effect" in loaded.warnings[0]


def test_imports_override_in_order(tmp_path: Path) -> None:
    """Imported files override the importing one; globs are sorted; a cycle ends."""
    (tmp_path / "d").mkdir()
    write(tmp_path, V2 + 'sandbox_image = "one"\n', "d/1.toml")
    write(tmp_path, 'imports = ["../config.toml"]\n' + V2 + 'sandbox_image = "two"\n', "d/2.toml")
    loaded = config.examine(write(tmp_path, 'imports = ["d/*.toml"]\n' + V2 + 'sandbox_image = "main"\n'))

    assert loaded.config.images.sandbox_image == "two"
    assert loaded.origins["images.pinned_images.sandbox"].endswith("d/2.toml:4")


def test_a_stream_processor_is_replaced_whole(tmp_path: Path) -> None:
    """An import that redefines a stream processor replaces all of it, as in containerd."""
    write(tmp_path, 'version = 2\n[stream_processors.a]\npath = "b"\n', "more.toml")
    loaded = config.load(
        write(tmp_path, 'version = 2\nimports = ["more.toml"]\n[stream_processors.a]\npath = "a"\nargs = ["x"]\n')
    )

    (processor,) = loaded.stream_processors
    assert (processor.id, processor.path, processor.args) == ("a", "b", ())


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    """A file that was named and is not there is an error, not the defaults."""
    with pytest.raises(NotFound):
        config.load(str(tmp_path / "none.toml"))


def test_show_names_origins_and_hides_secrets(tmp_path: Path) -> None:
    """Every value stands with its file and line or "default"; no credential is printed."""
    path = write(
        tmp_path,
        V2
        + 'sandbox_image = "r/p:1"\n[plugins."io.containerd.grpc.v1.cri".registry.configs."r.io".auth]\n'
        + 'password = "hunter2"\n',
    )

    loaded = config.examine(path)
    lines = list(render.show(loaded))

    (warning,) = loaded.warnings
    assert "use image pull secrets or bulkhead.image_credential_provider_config" in warning
    assert "hunter2" not in warning
    assert f'images.pinned_images.sandbox = "r/p:1"  # {path}:3' in lines
    assert 'grpc.address = "/run/bulkhead/cri.sock"  # default' in lines
    assert not any("hunter2" in line for line in lines)


def test_only_image_svc_receives_credentials(tmp_path: Path) -> None:
    """The resolved copy is the same configuration, but registry passwords go to image-svc alone."""
    text = V2 + '[plugins."io.containerd.grpc.v1.cri".registry.configs."r.io".auth]\npassword = "hunter2"\n'
    loaded = config.load(write(tmp_path, text))
    copies = {name: resolved_for(name, loaded) for name in ("image-svc", "cri-frontend", "sandbox-svc")}
    path = tmp_path / "resolved.json"
    path.write_bytes(copies["image-svc"])

    assert read_resolved(str(path)) == loaded
    assert config.load(str(path)) == loaded
    assert b"hunter2" not in copies["cri-frontend"] + copies["sandbox-svc"]


@pytest.mark.parametrize(
    "text", ["{", "{}x", '{"root": 1, "x": 2}', '{"grpc": 3}', '{"grpc": {"uid": "0"}}', "{" * 5000]
)
def test_a_broken_resolved_copy_is_refused(tmp_path: Path, text: str) -> None:
    """A copy that is cut or from another version is an error, not a half-read configuration."""
    with pytest.raises(InvalidArgument):
        config.load(write(tmp_path, text, "r.json"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4h", 14400.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("300ms", 0.3), ("0", 0.0), ("", 0.0), ("-2s", -2.0)],
)
def test_go_durations(text: str, seconds: float) -> None:
    """Durations mean what time.ParseDuration says."""
    assert parse_duration(text) == pytest.approx(seconds)


@given(st.text(alphabet=string.printable))
def test_durations_parse_or_say_why(text: str) -> None:
    """Any other text is a ValueError with what was expected."""
    try:
        value = parse_duration(text)
    except ValueError as error:
        assert "Go duration" in str(error)
    else:
        assert isinstance(value, float)


@given(
    st.recursive(
        st.one_of(st.booleans(), st.integers(-9, 99999), st.text(string.ascii_letters + '/"\n=[]', max_size=9)),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from(
        [
            "root",
            "grpc.address",
            "debug.level",
            "plugins.cri.sandbox_image",
            "plugins.cri.cni.bin_dir",
            "plugins.cri.registry.mirrors",
            "bulkhead.users",
            "bulkhead.cni_timeout",
            "timeouts",
            "imports",
        ]
    ),
)
def test_no_value_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, value: object, key: str) -> None:
    """Whatever stands behind a key, the result is a configuration or one of our errors."""
    path = tmp_path_factory.mktemp("fuzz") / "config.toml"
    path.write_text(f"{key} = {render._toml(value)}\n")
    try:
        loaded = config.load(str(path))
    except BulkheadError as error:
        assert str(error)
    else:
        assert loaded.root.is_absolute()


#: Every option of the CRI plugin's guide (containerd 1.7, version 2), by table below the plugin's, none at its default.
GUIDE = {
    "": """
disable_tcp_service = false
stream_server_address = "127.0.0.2"
stream_server_port = "10010"
stream_idle_timeout = "5h"
enable_selinux = true
selinux_category_range = 512
sandbox_image = "r/pause:1"
stats_collect_period = 11
enable_tls_streaming = true
tolerate_missing_hugetlb_controller = false
ignore_image_defined_volumes = true
netns_mounts_under_state_dir = true
max_container_log_line_size = 1000
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
max_concurrent_downloads = 4
disable_proc_mount = true
unset_seccomp_profile = "runtime/default"
enable_unprivileged_ports = false
enable_unprivileged_icmp = false
enable_cdi = false
cdi_spec_dirs = ["/x"]
drain_exec_sync_io_timeout = "10s"
""",
    "x509_key_pair_streaming": 'tls_cert_file = "/c"\ntls_key_file = "/k"\n',
    "containerd": """
snapshotter = "native"
no_pivot = true
disable_snapshot_annotations = false
discard_unpacked_layers = true
default_runtime_name = "kata"
ignore_blockio_not_enabled_errors = true
ignore_rdt_not_enabled_errors = true
""",
    "containerd.default_runtime": "",
    "containerd.untrusted_workload_runtime": "",
    "containerd.runtimes.kata": """
runtime_type = "io.containerd.kata.v2"
pod_annotations = ["a.*"]
container_annotations = ["b.*"]
privileged_without_host_devices = true
privileged_without_host_devices_all_devices_allowed = true
base_runtime_spec = "/s"
cni_conf_dir = "/n"
cni_max_conf_num = 2
snapshotter = "native"
treat_ro_mounts_as_rro = "Disabled"
""",
    "containerd.runtimes.kata.options": """
NoPivotRoot = true
NoNewKeyring = true
ShimCgroup = "/g"
IoUid = 1
IoGid = 2
BinaryName = "/b"
Root = "/r"
SystemdCgroup = true
CriuImagePath = "/i"
CriuWorkPath = "/w"
""",
    "cni": 'bin_dir = "/b"\nconf_dir = "/c"\nmax_conf_num = 3\nconf_template = "/t"\nip_pref = "cni"\n',
    "image_decryption": 'key_model = ""\n',
    "registry": 'config_path = "/certs"\n',
}
#: What of it has no effect by design, is deprecated, or has no effect yet; each is told in one warning.
TOLD = {"disable_tcp_service", "no_pivot", "bin_dir"}


def test_every_option_of_the_guide_is_known(tmp_path: Path) -> None:
    """Each option is read into a place of its own, or told of in one warning, and none is refused."""
    plugin = 'plugins."io.containerd.grpc.v1.cri"'
    tables = [f"[{plugin}{'.' + name if name else ''}]\n{body}" for name, body in GUIDE.items()]
    loaded = config.examine(write(tmp_path, "version = 2\n" + "".join(tables)))

    told = {name for name in TOLD if any(name in line for line in loaded.warnings)}
    options = [line.partition(" ")[0] for body in GUIDE.values() for line in body.split("\n") if line]
    assert (told, len(loaded.warnings)) == (TOLD, len(TOLD))
    assert len(loaded.origins.keys() - {"version"}) == len(options) - len({"disable_tcp_service", "no_pivot"})
    assert loaded.config.runtime.runtimes["kata"].options["SystemdCgroup"] is True
    assert loaded.config.images.registry.config_path == ("/certs",)


def test_proxy_plugins(tmp_path: Path) -> None:
    """Snapshotters of their own are read with the directory that they export; a handler's may come from the images."""
    text = """version = 3
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/stargz.sock"
[proxy_plugins.stargz.exports]
root = "/var/lib/stargz"
enable_remote_snapshot_annotations = "true"
[proxy_plugins.other]
type = "content"
address = "/run/content.sock"
[plugins."io.containerd.cri.v1.images".runtime_platforms.lazy]
snapshotter = "stargz"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.lazy]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.copied]
snapshotter = "native"
"""
    loaded = config.load(write(tmp_path, text))

    assert [loaded.snapshotter_of(name) for name in ("lazy", "copied", "", "runc", "unknown")] == [
        "stargz",
        "native",
        "overlayfs",
        "overlayfs",
        "overlayfs",
    ]
    assert loaded.exports_of("stargz") == Path("/var/lib/stargz")
    assert [loaded.exports_of(name) for name in ("", "overlayfs", "other", "unknown")] == [None] * 4


@pytest.mark.parametrize(
    ("name", "body", "wrong"),
    [
        ("stargz", 'type = "snapshot"', "has no address"),
        ("native", 'type = "snapshot"\naddress = "/x"', "built-in snapshotter"),
        ("stargz", 'type = "snapshot"\naddress = "x.sock"', "absolute path"),
        ("stargz", 'type = "snapshot"\naddress = "/x"\nexports = {root = "/a/../b"}', "expected root"),
        ("stargz", 'type = "snapshot"\naddress = "/x"\nexports = {root = "/"}', "expected root"),
        ("stargz", 'type = "snapshot"\naddress = "/x"\nexports = {root = 1}', "strings by name"),
    ],
)
def test_proxy_plugins_that_cannot_work(tmp_path: Path, name: str, body: str, wrong: str) -> None:
    """The error names the file and what is wrong."""
    with pytest.raises(InvalidArgument, match=wrong) as caught:
        config.load(write(tmp_path, f"version = 3\n[proxy_plugins.{name}]\n{body}\n"))
    assert "config.toml" in str(caught.value)
