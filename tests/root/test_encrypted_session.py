"""The session of imgcrypt's users, command by command, from encrypt to run without and with the key."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from support.encrypted import Hand, eventually, make_keys, run
from support.stack import BIN, Stack

pytestmark = pytest.mark.root

REFUSAL = "bulkhead: you are not authorized to use this image: missing private key needed for decryption"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs: mykey and other."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("mykey", "other"):
        make_keys(place, name)
    return place


@pytest.fixture(scope="module")
def hand(registry: str) -> Iterator[Hand]:
    """A stack without any key, and its command line."""
    with Stack(registry, default="crun", number=94) as stack:
        yield Hand(stack)


@pytest.fixture(scope="module")
def encrypted(hand: Hand, keys: Path, registry: str) -> str:
    """busybox, of two platforms, encrypted for linux/amd64 and pushed; neither of the names is here any more."""
    name, pushed = f"{registry}/busybox:1", f"{registry}/bash.enc:latest"
    hand.images("pull", "--all-platforms", name)
    hand.images("encrypt", "--recipient", f"jwe:{keys}/mykey.pub", "--platform", "linux/amd64", name, "bash.enc:latest")
    hand.images("tag", "bash.enc:latest", pushed)
    hand.images("push", pushed)
    hand.images("rm", pushed)
    hand.images("rm", "bash.enc:latest")
    hand.images("rm", name)
    return pushed


def raw(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{name}").stdout
    )
    return found


def test_the_session(hand: Hand, encrypted: str, keys: Path) -> None:
    """Pulled without a key it is kept; layerinfo shows for whom; run refuses, runs with the key, refuses again."""
    told = hand.bulkhead("images", "pull", encrypted).stderr.decode()
    assert "is kept, but not unpacked: you are not authorized to use this image" in told
    head, row = hand.images("layerinfo", "--platform", "linux/amd64", encrypted).splitlines()
    assert head.split() == ["#", "DIGEST", "PLATFORM", "SIZE", "ENCRYPTION", "RECIPIENTS"]
    assert row.split()[4:] == ["jwe", "[jwe]"]

    refused = hand.run("--rm", encrypted, "test", "echo", "Hello World!", status=125)
    assert refused.stderr.decode().startswith(REFUSAL)
    done = hand.run("--rm", "--key", keys / "mykey.pem", encrypted, "test", "echo", "Hello World!")
    assert (done.stdout, done.stderr) == (b"Hello World!\n", b"")
    refused = hand.run("--rm", encrypted, "test", "echo", "Hello World!", status=125)
    assert refused.stderr.decode().startswith(REFUSAL)
    assert not list(hand.stack.runtime_service().ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items)


def test_only_the_platform_asked_for_changes(encrypted: str, registry: str) -> None:
    """The other platform's entry of the index is the same; of the one encrypted only layers changed."""
    before, after = raw(f"{registry}/busybox:1"), raw(encrypted)
    kinds = [entry["platform"]["architecture"] for entry in after["manifests"]]
    assert kinds == [entry["platform"]["architecture"] for entry in before["manifests"]]
    old, new = (dict(zip(kinds, index["manifests"], strict=True)) for index in (before, after))
    assert old["arm64"] == new["arm64"]
    plain, sealed = (
        raw(f"{registry}/busybox@{old['amd64']['digest']}"),
        raw(f"{registry}/bash.enc@{new['amd64']['digest']}"),
    )
    assert plain["config"] == sealed["config"]
    for layer, twin in zip(plain["layers"], sealed["layers"], strict=True):
        assert twin["mediaType"] == layer["mediaType"] + "+encrypted"
        assert twin["size"] == layer["size"]
        assert twin["digest"] != layer["digest"]


def test_exit_status_environment_and_streams(hand: Hand, registry: str) -> None:
    """The exit status is the container's; variables, standard input and both outputs go where they belong."""
    name = f"{registry}/busybox:2"
    hand.images("pull", name)
    script = "echo $WHO; echo no >&2; printf half; exit 7"
    done = hand.run("--rm", "--env", "WHO=me", "--handler", "runc", name, "one", "sh", "-c", script, status=7)
    assert (done.stdout, done.stderr) == (b"me\nhalf", b"no\n")
    assert hand.run("--rm", "-i", name, "two", "cat", input=b"through\n").stdout == b"through\n"
    missing = hand.run("--rm", f"{registry}/nowhere:1", "three", "true", status=125)
    assert "is not here" in missing.stderr.decode()
    wrong = hand.run("--rm", name, "four", "/no/such", status=125)
    assert wrong.stderr.startswith(b"bulkhead: ")


def test_what_stays_without_rm(hand: Hand, registry: str) -> None:
    """Without --rm the stopped container and its output stay, and its name is taken until it is removed."""
    name = f"{registry}/busybox:2"
    hand.images("pull", name)
    hand.run(name, "stays", "echo", "kept")
    again = hand.run(name, "stays", "true", status=125)
    assert "remove it" in again.stderr.decode()
    runtime = hand.stack.runtime_service()
    (container,) = runtime.ListContainers(cri.ListContainersRequest(), timeout=30).containers
    status = runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container.id), timeout=30).status
    assert "kept" in Path(status.log_path).read_text()
    hand.stack.remove_pods()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_stops_and_removes(hand: Hand, registry: str, number: int, status: int) -> None:
    """Ctrl-C, or a SIGTERM, ends the container, and with --rm nothing of it is left."""
    name = f"{registry}/busybox:2"
    hand.images("pull", name)
    logs = hand.stack.directory / "root" / "io.bulkhead" / "run"
    before = sorted(logs.iterdir()) if logs.exists() else []
    command = [BIN / "bulkhead", "run", "--config", hand.stack.config, "--rm", "--stop-timeout", "1", name, "long"]
    words = [str(word) for word in (*command, "sh", "-c", "echo up; exec sleep 1000")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    assert process.wait(60) == status
    process.stdout.close()
    assert (sorted(logs.iterdir()) if logs.exists() else []) == before
    assert not list(hand.stack.runtime_service().ListPodSandbox(cri.ListPodSandboxRequest(), timeout=30).items)


def test_a_terminal(hand: Hand, registry: str) -> None:
    """With --tty the container has a terminal of our size, and what is typed goes to it."""
    name = f"{registry}/busybox:2"
    hand.images("pull", name)
    master, slave = pty.openpty()
    command = [BIN / "bulkhead", "run", "--config", hand.stack.config, "--rm", "--tty", name, "shell", "sh"]
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    os.set_blocking(master, False)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        with contextlib.suppress(OSError):
            seen += os.read(master, 65536)
        return seen

    # The prompt may have been written before anybody listened: enter brings another.
    def prompted() -> bool:
        os.write(master, b"\n")
        time.sleep(0.3)
        return b"/ # " in read()

    eventually(prompted)
    os.write(master, b"tty && exit $((40+2))\n")
    eventually(lambda: b"/dev/pts/0" in read())
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        read()
        time.sleep(0.05)
    os.close(master)
    assert process.returncode == 42, seen
