"""What each started process may do, read from the kernel: users, capabilities, namespaces, hidden keys."""

import base64
import grp
import json
import os
import pwd
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bulkhead import rpc
from bulkhead.proto import keys_pb2, keys_pb2_grpc
from support.small_stack import SmallStack, small_stack, status

pytestmark = pytest.mark.root

USERS = {
    "cri-frontend": "bulkhead-frontend",
    "image-svc": "bulkhead-image",
    "stream-svc": "bulkhead-stream",
    "decryptor": "bulkhead-decryptor",
}
HIDDEN_FROM = ("cri-frontend", "image-svc", "stream-svc", "image-svc-unpack", "decryptor")
UNPACK = sum(1 << bit for bit in (0, 1, 3, 4, 8, 18, 21, 27, 31))


@pytest.fixture(scope="module")
def stack() -> Iterator[SmallStack]:
    """A running stack with one good key, one bad one and one that is a link, as in a mounted Secret."""
    with small_stack() as made:
        keys = made.directory / "keys"
        key = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (keys / "..2026").mkdir()
        (keys / "..2026" / "node.pem").write_bytes(key)
        (keys / "..data").symlink_to("..2026")
        (keys / "node.pem").symlink_to("..data/node.pem")
        (keys / "bad.pem").write_text("nothing")
        (keys / "gone.pem").symlink_to("/nowhere")
        keys.chmod(0o700)
        certificates = made.directory / "certs.d" / "registry.example"
        certificates.mkdir()
        (certificates / "hosts.toml").write_text("# for everybody")
        (certificates / "client.key").write_text("for root")
        (certificates / "client.key").chmod(0o600)
        made.start()
        yield made


@pytest.mark.parametrize("name", sorted(USERS))
def test_unprivileged_services(stack: SmallStack, name: str) -> None:
    """Four services run under users of their own, in the callers' group, without any capability or a way to one."""
    seen, user = status(stack.pid(name)), pwd.getpwnam(USERS[name])

    assert seen["Uid"].split() == [str(user.pw_uid)] * 4
    assert seen["Gid"].split() == [str(user.pw_gid)] * 4
    calls = name in ("cri-frontend", "image-svc")
    assert seen["Groups"].split() == [str(grp.getgrnam("bulkhead").gr_gid)] * calls
    assert {seen[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert seen["NoNewPrivs"] == "1"


def test_the_unpack_helper(stack: SmallStack) -> None:
    """The unpack helper is root with the capabilities of its task and no network."""
    pid = stack.pid("image-svc-unpack")
    seen = status(pid)

    assert seen["Uid"].split()[0] == "0"
    assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == int(seen["CapPrm"], 16) == UNPACK
    assert seen["NoNewPrivs"] == "1"
    assert namespace(pid, "net") != namespace(os.getpid(), "net")


@pytest.mark.parametrize("name", ["sandbox-svc", "bulkhead-shim-zygote"])
def test_what_makes_pods_shares_the_hosts_mounts(stack: SmallStack, name: str) -> None:
    """sandbox-svc and the zygote have no mount namespace of their own: mounts of pods must propagate."""
    pid = stack.pid(name)

    assert namespace(pid, "mnt") == namespace(os.getpid(), "mnt")
    assert namespace(pid, "net") == namespace(os.getpid(), "net")


@pytest.mark.parametrize("name", HIDDEN_FROM)
def test_the_key_directory_is_hidden(stack: SmallStack, name: str) -> None:
    """Where the keys are, every other service sees an empty directory that even root cannot write to."""
    shown = f"/proc/{stack.pid(name)}/root{stack.directory}/keys"

    assert os.listdir(shown) == []
    with pytest.raises(OSError, match="Read-only"):
        open(f"{shown}/x", "w").close()


def test_only_the_decryptor_sees_the_copy(stack: SmallStack) -> None:
    """The copy of the keys is in the decryptor's mount namespace, for its user alone, and read-only."""
    below = f"{stack.state}/credentials/decryptor"
    inside = f"/proc/{stack.pid('decryptor')}/root{below}"
    found = os.stat(f"{inside}/keys/node.pem")

    assert sorted(os.listdir(f"{inside}/keys")) == ["bad.pem", "gone.pem", "node.pem"]
    assert (found.st_uid, found.st_mode & 0o777) == (pwd.getpwnam("bulkhead-decryptor").pw_uid, 0o400)
    assert os.stat(inside).st_mode & 0o777 == 0o500
    assert os.listdir(below) == []
    for other in (*HIDDEN_FROM[:-1], "sandbox-svc", "bulkhead-shim-zygote"):
        assert os.listdir(f"/proc/{stack.pid(other)}/root{below}") == []
    with pytest.raises(OSError, match="Read-only"):
        open(f"{inside}/keys/new", "w").close()


def test_certificates_of_root_are_readable_for_image_svc_alone(stack: SmallStack) -> None:
    """image-svc's user reads a copy where the host's file is root's; other files and other services see the host's."""
    below = f"{stack.directory}/certs.d/registry.example"
    user = pwd.getpwnam("bulkhead-image").pw_uid
    inside = os.stat(f"/proc/{stack.pid('image-svc')}/root{below}/client.key")
    outside = os.stat(f"{below}/client.key")
    readable = f"/proc/{stack.pid('image-svc')}/root{below}/hosts.toml"

    assert (inside.st_uid, inside.st_mode & 0o777) == (user, 0o400)
    assert Path(f"/proc/{stack.pid('image-svc')}/root{below}/client.key").read_text() == "for root"
    assert (outside.st_uid, outside.st_mode & 0o777) == (0, 0o600)
    assert os.stat(readable).st_ino == os.stat(f"{below}/hosts.toml").st_ino
    assert os.stat(f"/proc/{stack.pid('stream-svc')}/root{below}/client.key").st_ino == outside.st_ino


def test_the_decryptor_has_no_network(stack: SmallStack) -> None:
    """In its network namespace there is nothing but a loopback that is down, no address and no route."""
    pid = str(stack.pid("decryptor"))

    def inside(*command: str) -> str:
        return subprocess.run(["nsenter", "-t", pid, "-n", *command], capture_output=True, text=True, timeout=30).stdout

    assert [line.split(":")[1].strip() for line in inside("ip", "-o", "link").splitlines()] == ["lo"]
    assert "state DOWN" in inside("ip", "-o", "link")
    assert inside("ip", "-o", "address") == ""
    assert inside("ip", "route") + inside("ip", "-6", "route") == ""


def test_the_decryptor_shows_metrics_all_the_same(stack: SmallStack) -> None:
    """Its listener was made outside and handed in: /metrics counts keys, /readyz names those that cannot be used."""
    metrics = get(stack, "/metrics")
    ready = get(stack, "/readyz")

    assert 'bulkhead_decryptor_keys{state="loaded"} 1.0' in metrics
    assert 'bulkhead_decryptor_keys{state="failed"} 2.0' in metrics
    assert ready.splitlines()[0] == "ok"
    assert "key file 'bad.pem': not a key" in ready
    assert "key file 'gone.pem'" in ready


def test_keys_are_listed_and_encrypted_layers_refused(stack: SmallStack) -> None:
    """The decryptor answers over its socket: keys with fingerprints, refusals with layer and schemes."""
    channel = rpc.channel(f"{stack.state}/decryptor/grpc.sock")
    keys = keys_pb2_grpc.KeysStub(channel)
    prefix = "org.opencontainers.image.enc."
    public = json.dumps({"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": base64.b64encode(bytes(32)).decode()})
    wrapped = {f"{prefix}keys.pgp": "e30=", f"{prefix}pubopts": base64.b64encode(public.encode()).decode()}
    layer = keys_pb2.Layer(digest="sha256:" + "0" * 64, media_type="x+encrypted", annotations=wrapped)
    listed = {key.file: key for key in keys.ListKeys(keys_pb2.ListKeysRequest(), timeout=30).keys}
    with pytest.raises(grpc.RpcError) as error:
        keys.Check(keys_pb2.CheckRequest(layers=[layer]), timeout=30)
    channel.close()

    assert len(listed["node.pem"].fingerprint) == 64
    assert listed["gone.pem"].error.startswith("symbolic link that cannot be followed")
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "pgp needs pgp" in str(error.value.details())


def test_another_user_cannot_look_into_the_decryptor(stack: SmallStack) -> None:
    """Its memory is closed even to processes of its own user, and it leaves no core file."""
    pid = stack.pid("decryptor")
    own = pwd.getpwnam("bulkhead-decryptor")
    who = {"user": own.pw_uid, "group": own.pw_gid}
    tried = subprocess.run(["cat", f"/proc/{pid}/environ"], **who, extra_groups=[], capture_output=True, timeout=30)  # type: ignore[call-overload] # the mapping hides the types
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    core = next(line for line in limits if line.startswith("Max core file size"))

    assert tried.returncode != 0
    assert core.split()[4:6] == ["0", "0"]


def test_sockets_are_for_their_callers(stack: SmallStack) -> None:
    """Each backend's socket is for its callers' group alone, the CRI socket for root; no directory can be listed."""
    callers = {"image-svc": "bulkhead", "sandbox-svc": "bulkhead-frontend", "decryptor": "bulkhead"}
    for name, called_by in callers.items():
        group = grp.getgrnam(called_by).gr_gid
        socket, parent = os.stat(f"{stack.state}/{name}/grpc.sock"), os.stat(f"{stack.state}/{name}")
        assert (socket.st_mode & 0o777, socket.st_gid) == (0o660, group)
        assert parent.st_mode & 0o7777 == 0o2711
    cri = os.stat(f"{stack.state}/cri-frontend/cri.sock")

    assert cri.st_mode & 0o777 == 0o600
    assert os.readlink(stack.address) == f"{stack.state}/cri-frontend/cri.sock"


def test_each_service_reads_its_own_configuration(stack: SmallStack) -> None:
    """The copies are for their service's user alone."""
    for name, user in USERS.items():
        found = os.stat(f"{stack.state}/config/{name}.json")
        assert (found.st_uid, found.st_mode & 0o777) == (pwd.getpwnam(user).pw_uid, 0o400)


def test_secrets_of_the_environment_stay_outside(stack: SmallStack) -> None:
    """Services see a list of known variables, not the caller's environment."""
    variables = Path(f"/proc/{stack.pid('image-svc')}/environ").read_bytes().split(b"\0")
    names = {variable.partition(b"=")[0] for variable in variables}

    assert b"PATH" in names
    assert not names & {b"PYTEST_CURRENT_TEST", b"PYTHONPATH", b"USER", b"LISTEN_FDS"}


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def get(stack: SmallStack, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.ports['decryptor']}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text
