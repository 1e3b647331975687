"""What services do beyond answering, under their units' restrictions: keys, programs of others, images by hand."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bulkhead import layers, paths
from bulkhead.proto import keys_pb2
from conformance.build import build
from support.crictl import Crictl
from support.images import Image, Layer, Pusher, busybox
from support.keeper import TAR_GZIP, contents, digest_of, memory
from support.nri import Plugin
from support.registry import registry as run_registry
from support.token_server import TokenServer, token_server
from vm import units
from vm.units import WORD, Pod, eventually, journal, main_pid, run_pod, systemctl, wait_answering

pytestmark = pytest.mark.root

BULKHEAD = "/usr/lib/bulkhead/bin/bulkhead"
VERIFIERS = Path("/opt/containerd/image-verifier/bin")
NRI_PLUGINS = Path("/opt/nri/plugins")

#: Notes who runs it with what rights, then does what the file `verdict` says.
VERIFIER = r"""#!/bin/sh
printf '{"args": "%s", "stdin": %s, "uid": %s, "capabilities": "%s"}\n' \
    "$*" "$(cat)" "$(id -u)" "$(sed -n 's/CapEff:\t//p' /proc/self/status)" >> WORD/verifier
. WORD/verdict
"""
CREDENTIAL_PROGRAM = r"""#!/bin/sh
printf '{"request": %s, "uid": %s}\n' "$(cat)" "$(id -u)" >> WORD/credentials
cat <<'END'
ANSWER
END
"""
#: A key provider that wraps by doing nothing, and when it unwraps notes what it can see of the keys.
KEY_PROVIDER = """#!/usr/bin/python3
import glob, json, os, sys
request = json.load(sys.stdin)
if request["op"] == "keywrap":
    print(json.dumps({"keywrapresults": {"annotation": request["keywrapparams"]["optsdata"]}}))
    sys.exit()
def attempt(act):
    try:
        return str(act())
    except OSError as error:
        return type(error).__name__
directory = "/run/credentials/bulkhead-decryptor.service"
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
seen = {
    "uid": os.getuid(),
    "capabilities": status["CapEff"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "listing": attempt(lambda: os.listdir(directory)),
    "key": attempt(lambda: open(directory + "/keys_secret.pem").read()),
    "original": attempt(lambda: os.listdir("/etc/containerd/ocicrypt/keys")),
    "environment": sorted(os.environ),
}
with open("WORD/provider", "w") as out:
    json.dump(seen, out)
print(json.dumps({"keyunwrapresults": {"optsdata": request["keyunwrapparams"]["annotation"]}}))
"""


def program(path: Path, text: str) -> None:
    """Install a program that tells what it sees."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("WORD", str(WORD)))
    path.chmod(0o755)


def told(name: str) -> list[dict[str, Any]]:
    """What a program has noted."""
    file = WORD / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def uid(user: str) -> int:
    return int(subprocess.run(["id", "-u", user], check=True, capture_output=True, text=True, timeout=10).stdout)


def run(*command: str, status: int = 0, **options: Any) -> str:
    """Run a command that must end with that status and return what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == status, f"{' '.join(command)}: {done.returncode} {done.stderr}{done.stdout}"
    return str(done.stdout).strip()


@pytest.fixture(scope="module")
def pod(crictl: Crictl, registry: str) -> Pod:
    return run_pod(crictl, registry, "features")


@dataclass
class Encrypted:
    """A private key, and images that it and the key provider open."""

    key: bytes
    jwe: str
    provided: str


@pytest.fixture(scope="module")
def encrypted(crictl: Crictl, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Encrypted:
    directory = tmp_path_factory.mktemp("encrypted")
    key, public = directory / "mykey.pem", directory / "mypubkey.pem"
    run("openssl", "genrsa", "-out", str(key), "2048")
    run("openssl", "rsa", "-in", str(key), "-pubout", "-out", str(public))
    made = f"{registry}/busybox:jwe"
    tls = ("--src-tls-verify=false", "--dest-tls-verify=false", "--encryption-key", f"jwe:{public}")
    run("skopeo", "copy", *tls, f"docker://{registry}/busybox:1", f"docker://{made}")
    return Encrypted(key.read_bytes(), made, provided(registry))


def provided(registry: str) -> str:
    """Push busybox, encrypted by the decryptor for the key provider: Debian's skopeo does not know such recipients."""
    program(Path("/usr/local/lib/key-provider"), KEY_PROVIDER)
    units.PROVIDERS.write_text('{"key-providers": {"vm": {"cmd": {"path": "/usr/local/lib/key-provider"}}}}')
    systemctl("restart", "bulkhead-decryptor.service")
    eventually(lambda: loaded() == 0)
    image, pusher = busybox(), Pusher(registry)
    config, (plain,) = image.blobs()
    layer = keys_pb2.Layer(digest=digest_of(plain), media_type=TAR_GZIP)
    recipient = keys_pb2.Recipient(scheme="provider", name="vm")
    request = keys_pb2.EncryptRequest(layer=layer, recipients=[recipient])
    with memory(plain) as source, memory() as sink:
        with layers.encrypt(str(paths.layer_socket(units.STATE)), request, source, sink) as work:
            work.started(60)
            annotations = dict(work.result(keys_pb2.EncryptResult, 60).annotations)
        cipher = contents(sink)
    manifest = json.loads(image.manifest())
    manifest["layers"][0] |= {"mediaType": f"{TAR_GZIP}+encrypted", "size": len(cipher)}
    manifest["layers"][0] |= {"digest": digest_of(cipher), "annotations": annotations}
    for blob in (config, cipher):
        pusher.blob("busybox", blob)
    pusher.manifest("busybox", "provided", json.dumps(manifest).encode(), manifest["mediaType"])
    return f"{registry}/busybox:provided"


def swap(name: str, data: bytes | None) -> float:
    """Change the key directory as the kubelet changes a mounted Secret, None being one without the key.

    Return the seconds until the decryptor was another process that had read its keys.
    """
    old, began = main_pid("decryptor"), time.monotonic()
    (units.KEYS / name).mkdir()
    if data is not None:
        (units.KEYS / name / "node.pem").write_bytes(data)
        (units.KEYS / name / "node.pem").chmod(0o600)
    (units.KEYS / "..data_tmp").symlink_to(name)
    os.replace(units.KEYS / "..data_tmp", units.KEYS / "..data")
    link = units.KEYS / "node.pem"
    if data is None:
        link.unlink()
    elif not link.is_symlink():
        link.symlink_to("..data/node.pem")
    eventually(lambda: main_pid("decryptor") not in (0, old))
    return time.monotonic() - began


def decryptor_metric(name: str) -> str:
    text = run("curl", "-sS", "--fail", "-m", "20", "http://127.0.0.1:9474/metrics")
    return "\n".join(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name))


def loaded() -> float:
    """How many keys the decryptor has."""
    try:
        return float(decryptor_metric('bulkhead_decryptor_keys{state="loaded"}') or 0)
    except AssertionError:
        return -1.0


def test_an_encrypted_image(crictl: Crictl, pod: Pod, encrypted: Encrypted) -> None:
    """Refused without a key; a Secret that is swapped in makes it run, one that is swapped out stops the next one.

    The decryptor is started anew each time, and the journal has a line for each use of a key.
    """
    refused = crictl.run("pull", encrypted.jwe, check=False)
    assert refused.returncode != 0
    assert "you are not authorized to use this image" in refused.stderr
    assert loaded() == 0

    print(f"a new decryptor {swap('..one', encrypted.key):.1f} s after the Secret came")
    eventually(lambda: loaded() == 1)
    crictl("pull", encrypted.jwe)
    crictl("start", pod.create("hello", encrypted.jwe, "echo Hello World!"))
    log = Path("/var/log/pods/features/hello.log")
    eventually(lambda: log.exists() and "Hello World!" in log.read_text())
    lines = journal("-u", "bulkhead-decryptor").splitlines()
    (line,) = [line for line in lines if f"image={encrypted.jwe} " in line and "verdict=opened" in line]
    assert "decryptor.audit: key opened" in line
    for name, value in (("scheme", "jwe"), ("fingerprint", "[0-9a-f]{64}"), ("layer", "sha256:[0-9a-f]{64}")):
        assert re.search(f" {name}={value}( |$)", line), line

    print(f"a new decryptor {swap('..two', None):.1f} s after the Secret went")
    eventually(lambda: loaded() == 0)

    def refusal() -> bool:
        config = crictl.file("again.json", {"metadata": {"name": "again"}, "image": {"image": encrypted.jwe}})
        answer = crictl.run("create", pod.id, config, pod.file, check=False)
        return answer.returncode != 0 and "not authorized to use this image" in answer.stderr

    eventually(refusal, 30)
    lines = journal("-u", "bulkhead-decryptor").splitlines()
    assert any("pod=default/features " in line and "verdict=refused" in line for line in lines)


def test_many_keys_one_after_the_other(encrypted: Encrypted) -> None:
    """Of keys that come while the decryptor is started anew none is missed, and their number stops nothing."""
    names = [f"k{number}.pem" for number in range(30)]

    def copied() -> set[str]:
        seen = units.inside("decryptor", "--mount", "ls", "/run/credentials/bulkhead-decryptor.service")
        return {name.removeprefix("keys_") for name in seen.split()} & set(names)

    for name in names:
        (units.KEYS / name).write_bytes(encrypted.key)
        time.sleep(0.25)
    eventually(lambda: copied() == set(names))
    for name in names:
        (units.KEYS / name).unlink()
    eventually(lambda: copied() == set() and loaded() == 0)
    assert systemctl("is-active", "bulkhead-decryptor-keys.path") == "active"


def test_a_key_provider_sees_no_key(crictl: Crictl, encrypted: Encrypted) -> None:
    """A key provider's program opens an image, under the unit's filter, without rights, and kept from the keys."""
    crictl("pull", encrypted.provided)

    (seen,) = told("provider")
    assert (seen["uid"], seen["capabilities"], seen["seccomp"]) == (uid("bulkhead-decryptor"), "0" * 16, "2")
    # It runs as the user that owns the copies: Landlock is what says no.
    assert (seen["listing"], seen["key"]) == ("PermissionError", "PermissionError")
    assert seen["original"] in ("PermissionError", "[]")
    assert "CREDENTIALS_DIRECTORY" not in seen["environment"]
    assert "Landlock" not in journal("-u", "bulkhead-decryptor")


def test_the_decryptors_memory(crictl: Crictl) -> None:
    """It is locked, and the process and its helper are closed to others; both run under a filter."""
    pid = main_pid("decryptor")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    assert decryptor_metric("bulkhead_decryptor_memory_locked ") == "1.0"
    assert int(status["VmLck"].split()[0]) > 0
    assert int(status["VmSwap"].split()[0]) == 0
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    helper = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    # The unit's filter binds both, the decryptor's own comes on top: fork is in the one and not in the other.
    filters = [
        re.findall(r"^Seccomp_filters:\t(\d+)$", Path(f"/proc/{each}/status").read_text(), re.MULTILINE)[0]
        for each in (pid, helper)
    ]
    assert int(filters[0]) == int(filters[1]) + 1
    # Not dumpable: what is in /proc belongs to root.
    assert Path(f"/proc/{pid}/mem").stat().st_uid == 0


def test_image_verifiers(crictl: Crictl, registry: str) -> None:
    """A verifier runs under image-svc's unit without rights, and what it refuses is not pulled."""
    (WORD / "verdict").write_text("exit 0\n")
    program(VERIFIERS / "check", VERIFIER)
    try:
        crictl("pull", f"{registry}/busybox:1")
        (call,) = told("verifier")
        assert (call["uid"], call["capabilities"]) == (uid("bulkhead-image"), "0" * 16)
        assert f"{registry}/busybox:1" in call["args"]
        assert call["stdin"]["digest"].startswith("sha256:")
        (WORD / "verdict").write_text("echo unsigned; exit 1\n")
        answer = crictl.run("pull", f"{registry}/busybox:1", check=False)
        assert "SignatureValidationFailed" in answer.stderr
        assert "unsigned" in answer.stderr
    finally:
        (VERIFIERS / "check").unlink()


def test_credential_providers(crictl: Crictl, tmp_path: Path) -> None:
    """A credential provider runs under image-svc's unit and opens a registry that wants a password."""
    server = TokenServer("tester", "secret-word")
    with token_server(server, tmp_path) as settings, run_registry(tmp_path / "data", auth=settings) as address:
        pusher = Pusher(address, f"Bearer {server.token('repository:team/app:pull,push')}")
        pusher.image("team/app", "1", Image([Layer().file("a", "1").tar()]))
        answer = {
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderResponse",
            "cacheKeyType": "Registry",
            "auth": {address: {"username": "tester", "password": "secret-word"}},
        }
        program(units.CREDENTIAL_PROGRAMS / "vm-provider", CREDENTIAL_PROGRAM.replace("ANSWER", json.dumps(answer)))
        units.CREDENTIAL_PROVIDERS.write_text(units.CREDENTIAL_CONFIG.format(address=address))
        crictl("pull", f"{address}/team/app:1")
    (call,) = told("credentials")
    assert call["uid"] == uid("bulkhead-image")
    assert call["request"]["image"] == f"{address}/team/app"
    assert "secret-word" not in journal("-u", "bulkhead*")


def test_images_by_hand(crictl: Crictl, registry: str, tmp_path: Path) -> None:
    """Root pulls, exports, removes and imports with `bulkhead images`; a user of no group is turned away."""
    images, name, archive = (BULKHEAD, "images"), f"{registry}/busybox:1", tmp_path / "box.tar"
    run(*images, "pull", name)
    run(*images, "tag", name, f"{registry}/other:1")
    run(*images, "export", str(archive), f"{registry}/other:1")
    run(*images, "rm", f"{registry}/other:1")
    assert f"{registry}/other:1" not in crictl("images", "--no-trunc")
    with archive.open() as data:
        run(*images, "import", "-", stdin=data)
    listed = json.loads(crictl("images", "-o", "json"))["images"]
    assert any(f"{registry}/other:1" in image["repoTags"] for image in listed)
    run(*images, "push", f"{registry}/other:1", f"{registry}/pushed:1")
    run(*images, "pull", f"{registry}/pushed:1")
    socket = ("--socket", str(units.STATE / "image-svc" / "grpc.sock"))
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    run(*nobody, *images, "ls", *socket, status=4)


@pytest.fixture
def own_plugin(crictl: Crictl) -> Iterator[Plugin]:
    """A plugin that sandbox-svc starts itself, as an administrator installs it."""
    log = Path("/run/vmtest-own.log")
    binary = build("nriplugin")["nriplugin"]
    NRI_PLUGINS.mkdir(parents=True, exist_ok=True)
    target = NRI_PLUGINS / "10-own"
    target.write_bytes(binary.read_bytes())
    target.chmod(0o755)
    answer = json.dumps({"adjust": {"env": [{"key": "FROM_PLUGIN", "value": "own"}]}})
    Path(f"{target}.args").write_text(f"-log\n{log}\n-answer\nCreateContainer={answer}")
    systemctl("restart", "bulkhead-sandbox-svc.service")
    wait_answering(crictl)
    yield Plugin("10-own", log)
    target.unlink()
    Path(f"{target}.args").unlink()
    systemctl("restart", "bulkhead-sandbox-svc.service")
    wait_answering(crictl)


def test_nri_plugins(pod: Pod, own_plugin: Plugin, registry: str, tmp_path: Path) -> None:
    """One plugin that the unit starts and one that connects to /var/run/nri hear of a container and change it."""
    log = tmp_path / "other.log"
    answer = json.dumps({"adjust": {"annotations": {"other": "was here"}}})
    command: list[str | Path] = [
        build("nriplugin")["nriplugin"],
        "-socket",
        "/var/run/nri/nri.sock",
        "-name",
        "other",
        "-idx",
        "20",
    ]
    with subprocess.Popen([*command, "-log", log, "-answer", f"CreateContainer={answer}"]) as process:
        other = Plugin("20-other", log, process)
        try:
            for plugin in (own_plugin, other):
                assert pod.id in plugin.heard("Synchronize", timeout=30)["pods"]
            container = pod.create("plugged", f"{registry}/busybox:1", "echo $FROM_PLUGIN; sleep 1000")
            pod.crictl("start", container)
            assert pod.crictl("exec", "-s", container, "sh", "-c", "echo $FROM_PLUGIN") == "own"
            for plugin in (own_plugin, other):
                assert plugin.heard("PostStartContainer", timeout=30)["container"]["id"] == container
            spec = json.loads(next(units.STATE.glob(f"bundles/{container}/config.json")).read_text())
            assert spec["annotations"]["other"] == "was here"
            pod.crictl("rm", "-f", container)
            assert other.heard("RemoveContainer", timeout=30)["container"]["id"] == container
        finally:
            process.kill()
    pod.lives()
