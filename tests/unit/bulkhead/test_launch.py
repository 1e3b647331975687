"""What each service is allowed, compared as data; and the units, which must say the same."""

import configparser
import json
import os
import pwd
import re
import resource
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import processors
from bulkhead.config.model import Bulkhead, Config, StreamProcessor
from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.launch import directories, enter, grants, plan, refresh, users
from bulkhead.launch.linux import CAPABILITIES
from bulkhead.launch.plan import Plan
from bulkhead.launch.users import User, Users
from bulkhead.supervisor import roster

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "deploy" / "systemd"
PEOPLE = Users(
    50,
    {
        "cri-frontend": User("bulkhead-frontend", 101, 201),
        "image-svc": User("bulkhead-image", 102, 202),
        "stream-svc": User("bulkhead-stream", 103, 203),
        "decryptor": User("bulkhead-decryptor", 104, 204),
    },
)
SERVICES = (
    "bulkhead-sandbox-svc",
    "bulkhead-shims",
    "bulkhead-image-svc-unpack",
    *(f"bulkhead-{name}" for name in PEOPLE.by_service),
)


def plans() -> dict[str, Plan]:
    return {
        entry.name: entry.plan for entry in roster.roster(Config(), PEOPLE, {"PATH": "/bin", "SECRET": "x"}, Path("/p"))
    }


def unit(name: str) -> dict[str, list[str]]:
    """Read a unit's settings, of all sections together, repeated ones kept."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", sorted(PEOPLE.by_service))
def test_four_services_have_nothing_of_root(name: str) -> None:
    """Own user, the callers' group if it calls, no capability, no core file, the key directory covered."""
    made = plans()[name]

    assert (made.uid, made.groups) == (PEOPLE.of(name).uid, (50,) if name in ("cri-frontend", "image-svc") else ())
    assert made.capabilities == ()
    assert made.limits[resource.RLIMIT_CORE] == 0
    assert made.hide == ("/etc/containerd/ocicrypt/keys",)


def test_who_may_call_sandbox_svc() -> None:
    """Of users and groups only the frontend's reach it, and neither stream-svc nor the decryptor reach anybody: the one
    talks to the network, and whoever calls sandbox-svc can start anything as root.
    """
    sockets = {step.path.name: step for step in directories.wanted(Config(), PEOPLE) if step.mode == directories.CALLED}
    reached = {
        name: {service for service, step in sockets.items() if step.gid in (made.gid, *made.groups)} - {name}
        for name, made in plans().items()
        if made.uid
    }

    assert [name for name, services in reached.items() if "sandbox-svc" in services] == ["cri-frontend"]
    assert reached["cri-frontend"] > {"image-svc"}
    assert reached["image-svc"] > {"decryptor"}
    assert reached["stream-svc"] == reached["decryptor"] == set()


@pytest.mark.parametrize("name", ["sandbox-svc", "zygote"])
def test_what_makes_pods_gets_no_namespace(name: str) -> None:
    """sandbox-svc and the zygote stay root in the host's mount namespace."""
    made = plans()[name]

    assert (made.uid, made.capabilities, made.mount_namespace, made.no_network) == (0, None, False, False)


def test_only_the_decryptor_gets_keys() -> None:
    """The copy of the keys and the absence of a network are the decryptor's."""
    assert [name for name, made in plans().items() if made.credentials] == ["decryptor"]
    assert [name for name, made in plans().items() if made.no_network] == ["decryptor", "image-svc-unpack"]


def test_tls_files_are_granted_to_who_needs_them() -> None:
    """image-svc may read the certificate directories, stream-svc its own pair, and nobody else gets copies."""
    granted = {name: made.grants for name, made in plans().items() if made.grants}

    assert granted == {"image-svc": ("/etc/containerd/certs.d", "/etc/docker/certs.d")}


def test_credential_providers_are_granted_to_image_svc() -> None:
    """The file that names credential providers, which may hold secrets in its variables, is image-svc's to read."""
    own = Bulkhead(image_credential_provider_config="/etc/providers.yaml")
    made = {entry.name: entry.plan for entry in roster.roster(Config(bulkhead=own), PEOPLE, {}, Path("/p"))}

    assert [name for name, plan in made.items() if "/etc/providers.yaml" in plan.grants] == ["image-svc"]


def test_what_a_user_cannot_read(tmp_path: Path) -> None:
    """Closed files are found through links and directories, by owner, group and mode, each once."""
    for name, mode in (("open", 0o644), ("closed", 0o600), ("grouped", 0o640)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("closed")
    (tmp_path / "dangling").symlink_to("nowhere")
    me = (tmp_path / "closed").stat()

    assert grants.closed_files([str(tmp_path)], 54321, [54321]) == [tmp_path / "closed", tmp_path / "grouped"]
    assert grants.closed_files([str(tmp_path)], 54321, [me.st_gid]) == [tmp_path / "closed"]
    assert grants.closed_files([str(tmp_path), "/nowhere"], me.st_uid, []) == []


def test_the_environment_is_a_short_list() -> None:
    """PATH passes, the rest of the caller's environment does not."""
    variables = plans()["image-svc"].environment

    assert variables["PATH"] == "/bin"
    assert "SECRET" not in variables
    assert (
        plan.environment({"HTTPS_PROXY": "p", "LC_ALL": "C"}, "/h").items()
        >= {"HTTPS_PROXY": "p", "LC_ALL": "C"}.items()
    )


@pytest.mark.parametrize("name", roster.START)
def test_a_plan_survives_its_way_to_the_launcher(name: str) -> None:
    """A plan read back from JSON is the plan that was written."""
    made = plans()[name]

    assert Plan.from_json(made.to_json()) == made
    assert "SECRET" not in json.loads(made.to_json())["environment"]


def test_a_plan_that_would_keep_roots_capabilities_is_refused() -> None:
    """A user other than root must be given a list of capabilities, and only known ones."""
    with pytest.raises(InvalidArgument, match="list of capabilities"):
        Plan(("/bin/true",), uid=5)
    with pytest.raises(InvalidArgument, match="unknown capability 'FLY'"):
        Plan(("/bin/true",), capabilities=("FLY",))


def test_capability_numbers() -> None:
    """The numbers are the kernel's, at both ends and in the middle."""
    assert (CAPABILITIES["CHOWN"], CAPABILITIES["SYS_ADMIN"], CAPABILITIES["CHECKPOINT_RESTORE"]) == (0, 21, 40)


@given(st.integers(-1, 1000), st.integers(-1, 1000))
def test_limits_never_exceed_the_hard_one(wanted: int, hard: int) -> None:
    """What is set is what is wanted, or the hard limit if that is lower."""
    soft, new_hard = plan.limits_now(0, wanted, hard)

    assert soft == new_hard
    assert soft == (wanted if hard == -1 or (wanted != -1 and wanted <= hard) else hard)


def test_where_the_keys_are() -> None:
    """The argument of a ctd-decoder stream processor wins over the setting, in both spellings."""

    def config(*args: str, path: str = "/usr/bin/ctd-decoder") -> Config:
        return replace(Config(), stream_processors=(StreamProcessor("x", path=path, args=args),))

    assert processors.keys_path(Config()) == "/etc/containerd/ocicrypt/keys"
    assert processors.keys_path(config("--decryption-keys-path", "/k")) == "/k"
    assert processors.keys_path(config("--decryption-keys-path=/k2")) == "/k2"
    assert processors.keys_path(config("--decryption-keys-path")) == "/etc/containerd/ocicrypt/keys"
    assert processors.keys_path(config("--decryption-keys-path=/k2", path="other")) == "/etc/containerd/ocicrypt/keys"


def test_directories_and_their_owners() -> None:
    """Each service owns its own directory alone; databases of different services never share one."""
    steps = {str(step.path): step.describe() for step in directories.wanted(Config(), PEOPLE)}
    state, root = "/run/bulkhead/io.bulkhead", "/var/lib/bulkhead/io.bulkhead"

    assert steps[root] == f"{root} 0:0 0711"
    assert steps[f"{root}/image-svc"] == f"{root}/image-svc 102:202 0700"
    assert steps[f"{state}/image-svc"] == f"{state}/image-svc 102:50 2711"
    assert steps[f"{state}/sandbox-svc"] == f"{state}/sandbox-svc 0:201 2711"
    assert steps[f"{state}/zygote"] == f"{state}/zygote 0:0 0700"
    assert steps[f"{state}/credentials/decryptor"] == f"{state}/credentials/decryptor 0:0 0700"


def test_a_directory_is_made_right_and_made_right_again(tmp_path: Path) -> None:
    """An existing directory gets its mode; a link in its place is refused."""
    import os

    wanted = directories.Directory(tmp_path / "d", os.getuid(), os.getgid(), 0o2711)
    wanted.execute()
    (tmp_path / "d").chmod(0o777)
    wanted.execute()
    (tmp_path / "link").symlink_to("d")

    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o2711
    with pytest.raises(FailedPrecondition, match="not a directory that can be used"):
        directories.Directory(tmp_path / "link", 0, 0, 0o711).execute()


def test_missing_users_come_with_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the line that makes each missing user and group."""
    monkeypatch.setattr(users, "GROUP", "bulkhead-nobody-has-this")
    with pytest.raises(FailedPrecondition) as error:
        users.look_up({"image-svc": "bulkhead-nobody-is-this"})

    assert "groupadd --system bulkhead-nobody-has-this" in str(error.value)
    assert "--shell /usr/sbin/nologin bulkhead-nobody-is-this" in str(error.value)
    assert "systemd-sysusers" in str(error.value)


def test_users_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, or one user for two services, is refused by name."""
    monkeypatch.setattr(users, "GROUP", "root")
    with pytest.raises(FailedPrecondition, match="image-svc would run as 'root'"):
        users.look_up({"image-svc": "root"})
    with pytest.raises(FailedPrecondition, match=r"decryptor would run as 'daemon' .* image-svc's"):
        users.look_up({"image-svc": "daemon", "decryptor": "daemon"})


@pytest.mark.parametrize(("group", "whose"), [(1, "image-svc"), (65534, "nobody"), (0, "root")])
def test_groups_are_not_shared(monkeypatch: pytest.MonkeyPatch, group: int, whose: str) -> None:
    """A primary group that is another service's, root's or everybody's would let others call what is the service's."""
    entries = {"daemon": (1, 1), "bin": (2, group)}
    monkeypatch.setattr(users, "GROUP", "root")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", *entries[name], "", "/", "/x")))
    with pytest.raises(FailedPrecondition, match=rf"'bin', .* group {group} in common with {whose}"):
        users.look_up({"image-svc": "daemon", "decryptor": "bin"})


@pytest.mark.parametrize("name", SERVICES)
def test_units_start_what_is_installed(name: str) -> None:
    """Every unit starts a script of this distribution with the copy that its `prepare` line wrote."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    settings = unit(f"{name}.service")
    (start,), (before,) = settings["ExecStart"], settings["ExecStartPre"]
    program, _, copy = start.partition(" --config=")

    assert Path(program).name in scripts
    assert before.endswith(f" --to={copy}")
    assert re.search(r"bulkhead prepare (\S+)", before)[1] in roster.START  # type: ignore[index] # or the test fails
    assert f"{name}.service" in (UNITS / "bulkhead.target").read_text()


@pytest.mark.parametrize("service", sorted(PEOPLE.by_service))
def test_units_of_unprivileged_services(service: str) -> None:
    """The units give the same user, group and absence of capabilities as `bulkhead up`."""
    settings = unit(f"bulkhead-{service}.service")

    assert settings["User"] == [Config().bulkhead.users[service]]
    assert settings.get("SupplementaryGroups", []) == [users.GROUP] * len(plans()[service].groups)
    assert settings["CapabilityBoundingSet"] == [""]
    assert settings["NoNewPrivileges"] == ["yes"]
    assert settings["InaccessiblePaths"] == [f"-{Config().bulkhead.decryption_keys_path}"]
    assert int(settings["UMask"][0], 8) == plans()[service].umask


def test_the_unit_of_the_unpack_helper() -> None:
    """Its capabilities are those that `bulkhead up` leaves it."""
    settings = unit("bulkhead-image-svc-unpack.service")
    named = " ".join(settings["CapabilityBoundingSet"]).replace("CAP_", "").split()

    assert set(named) == set(plan.UNPACK_CAPABILITIES)
    assert settings["PrivateNetwork"] == ["yes"]


@pytest.mark.parametrize("name", ["bulkhead-shims", "bulkhead-sandbox-svc"])
def test_units_that_make_pods_have_no_mount_namespace(name: str) -> None:
    """None of the directives that imply a mount namespace stands in them."""
    implied = re.compile(r"Protect|Private|ReadOnly|ReadWrite|Inaccessible|Temporary|Bind|Root|DynamicUser|MountFlags")

    assert [key for key in unit(f"{name}.service") if implied.match(key)] == []


def test_the_shims_unit_lets_shims_live() -> None:
    """Stopping or restarting the zygote's unit leaves what it forked."""
    settings = unit("bulkhead-shims.service")

    assert settings["KillMode"] == ["process"]
    assert settings["Delegate"] == ["yes"]
    assert settings["TasksMax"] == ["infinity"]
    assert "PartOf" not in settings
    assert not [key for key in settings if key.startswith("Memory")]


def test_the_decryptors_units() -> None:
    """Keys come as credentials, the metrics port from the socket unit, the network not at all."""
    settings, listener = unit("bulkhead-decryptor.service"), unit("bulkhead-decryptor.socket")

    place = Config().bulkhead.decryption_keys_path
    # The second is a mounted Secret's directory, to which the files of the first are links that systemd passes over.
    assert settings["LoadCredential"] == [f"keys:{place}", f"mounted:{place}/..data"]
    assert settings["SetCredential"] == ["mounted:none"]
    assert settings["PrivateNetwork"] == ["yes"]
    assert settings["LimitMEMLOCK"] == ["infinity"]
    # At the start it is said which files stop it.
    assert listener["ExecStartPre"] == ["-/usr/lib/bulkhead/bin/bulkhead prepare keys"]
    assert listener["ListenStream"] == [f"127.0.0.1:{Config().bulkhead.metrics_ports['decryptor']}"]


def test_changed_keys_start_the_decryptor_anew() -> None:
    """The path unit watches the directory that is copied, and its service restarts a decryptor that runs."""
    watched, anew = unit("bulkhead-decryptor-keys.path"), unit("bulkhead-decryptor-keys.service")

    assert watched["PathChanged"] == [Config().bulkhead.decryption_keys_path]
    # What would stop the next decryptor does not end this one.
    assert anew["ExecStartPre"][-1] == "/usr/lib/bulkhead/bin/bulkhead prepare keys"
    # Not waited for: the path unit looks away while this runs.
    assert anew["ExecStart"] == ["/usr/bin/systemctl --no-block try-restart bulkhead-decryptor.service"]


def test_sysusers_makes_the_default_users() -> None:
    """sysusers.d names the group and every user of the default configuration."""
    lines = [line.split()[:2] for line in (UNITS / "sysusers.d/bulkhead.conf").read_text().splitlines()]

    assert ["g", users.GROUP] in lines
    assert {name for kind, name in (line for line in lines if line[0] == "u")} == set(Config().bulkhead.users.values())


@pytest.mark.parametrize(
    ("caller", "called"),
    [
        ("cri-frontend", {"sandbox-svc", "image-svc"}),
        ("sandbox-svc", {"shims", "image-svc"}),
        ("image-svc", {"image-svc-unpack", "decryptor"}),
    ],
)
def test_units_stop_before_those_they_call(caller: str, called: set[str]) -> None:
    """systemd stops units in the reverse of After=, so what a service has begun with another it can also end."""
    after = " ".join(unit(f"bulkhead-{caller}.service")["After"]).split()

    assert {f"bulkhead-{name}.service" for name in called} <= set(after)


def test_units_are_well_formed() -> None:
    """Every unit parses as the format it is."""
    for path in UNITS.glob("*.*"):
        if path.is_file():
            parsed: Any = configparser.RawConfigParser(strict=False, interpolation=None, allow_no_value=True)
            parsed.optionxform = str
            parsed.read_string(path.read_text())
            assert "Unit" in parsed


def test_a_key_link_that_leads_nowhere_is_copied_as_such(tmp_path: Path) -> None:
    """A link too long to follow disables that key; the others are copied."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a").symlink_to("x" * 300)
    (tmp_path / "keys" / "b.pem").write_bytes(b"key")
    (tmp_path / "copy").mkdir()

    enter._copy(tmp_path / "keys", tmp_path / "copy", os.getuid(), os.getgid())

    assert (tmp_path / "copy" / "b.pem").read_bytes() == b"key"
    assert os.readlink(tmp_path / "copy" / "a").startswith("cannot be opened")


def test_a_key_directorys_changes_are_seen(tmp_path: Path) -> None:
    """A file written behind a link, a swapped Secret, a key added or taken away: each is another signature."""
    keys, elsewhere = tmp_path / "keys", tmp_path / "elsewhere"
    for directory in (keys, keys / "..one", keys / "..two", keys / "team"):
        directory.mkdir()
    elsewhere.write_text("a")
    (keys / "linked.pem").symlink_to(elsewhere)
    for name in ("..one", "..two"):
        (keys / name / "node.pem").write_text("key")
    (keys / "..data").symlink_to("..one")
    (keys / "node.pem").symlink_to("..data/node.pem")
    seen = [refresh.signature(str(keys))]

    def changed() -> bool:
        seen.append(refresh.signature(str(keys)))
        return seen[-1] != seen[-2]

    assert not changed()
    elsewhere.write_text("longer")
    assert changed()
    (keys / "..new").symlink_to("..two")
    os.replace(keys / "..new", keys / "..data")
    assert changed()
    (keys / "team" / "b.pem").write_text("x")
    assert changed()
    (keys / "node.pem").unlink()
    assert changed()
    assert refresh.signature(str(tmp_path / "missing")) == ()
