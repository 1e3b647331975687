"""Keys that are not files: in a token, behind SoftHSM's module; with a key provider, behind a unix socket."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.errors import BulkheadError, FailedPrecondition
from bulkhead.proto import keys_pb2
from conformance.build import build
from support.encrypted import eventually
from support.keeper import Keeper, encrypted

pytestmark = pytest.mark.root

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
SECRET = "22" * 32
#: Nothing that a digest in the log could hold.
PIN = "no-digits"
PLAIN = b"layer" * 50_000


class Token:
    """A SoftHSM token with one RSA key, the oracle with the same key file, and a decryptor that has it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tokens").mkdir()
        self.conf = directory / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\n")
        self.environment = {**os.environ, "SOFTHSM2_CONF": str(self.conf), "OCICRYPT_OAEP_HASHALG": "sha1"}
        self.policy(f"{Path(MODULE).parent}/")
        self.environment["OCICRYPT_CONFIG"] = str(directory / "ocicrypt.conf")

    def policy(self, allowed: str) -> None:
        """Say which modules may be loaded."""
        (self.directory / "ocicrypt.conf").write_text(
            f"pkcs11:\n  module-directories:\n  - {Path(MODULE).parent}/\n  allowed-module-paths:\n  - {allowed}\n"
        )

    def make(self) -> None:
        """Make a token and import a key of 3072 bits; its public half is written beside."""
        self.tool("--init-token", "--free", "--label", "node", "--so-pin", "0000", "--pin", PIN)
        key = self.directory / "key.pem"
        run("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", key)
        run("openssl", "pkey", "-in", key, "-pubout", "-out", self.directory / "key.pub")
        self.tool("--import", key, "--token", "node", "--label", "layers", "--id", "A1", "--pin", PIN)
        key.unlink()

    def tool(self, *arguments: object) -> None:
        run("softhsm2-util", "--module", MODULE, *arguments, environment=self.environment)

    def yaml(self, uri: str = f"pkcs11:token=node;object=layers?module-name=softhsm2&pin-value={PIN}") -> str:
        """Return ocicrypt's key file for the key."""
        return f"pkcs11:\n  uri: {uri}\nmodule:\n  env:\n    SOFTHSM2_CONF: {self.conf}\n"


def run(*command: object, environment: dict[str, str] | None = None) -> bytes:
    command_line = [str(part) for part in command]
    result = subprocess.run(command_line, capture_output=True, timeout=60, env=environment, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    """A decryptor with the key in the token, and a provider behind a unix socket."""
    made = Keeper()
    made.prepare()
    token = Token(made.directory)
    token.make()
    (made.keys / "token.yaml").write_text(token.yaml())
    program = build("ocicrypt")["ocicrypt"]
    socket = made.directory / "provider.sock"
    (made.directory / "providers.json").write_text(
        json.dumps(
            {"key-providers": {"vault": {"grpc": f"unix://{socket}"}, "far": {"grpc": "vault.example.com:50051"}}}
        )
    )
    made.environment = {**token.environment, "OCICRYPT_KEYPROVIDER_CONFIG": str(made.directory / "providers.json")}
    log = str(made.directory / "request")
    serving = subprocess.Popen(
        [program, "serve", socket],
        env={**os.environ, "OCICRYPT_TEST_KEY": SECRET, "OCICRYPT_TEST_LOG": log},
        stdout=subprocess.PIPE,
    )
    assert serving.stdout is not None
    assert serving.stdout.readline() == b"serving\n"
    made.start()
    yield made
    serving.kill()
    serving.communicate()
    made.stop()
    shutil.rmtree(made.directory)


def oracle(keeper: Keeper, *arguments: object) -> bytes:
    return run(build("ocicrypt")["ocicrypt"], *arguments, environment=keeper.environment)


@pytest.mark.parametrize("recipient", ["key.pub", "keys/token.yaml"])
def test_a_tokens_layers_in_both_directions(keeper: Keeper, recipient: str) -> None:
    """Wrapped for the public key or through the token, here or by ocicrypt, a layer opens at both."""
    file = keeper.directory / recipient
    layer, cipher = keeper.encrypt(PLAIN, keys_pb2.Recipient(scheme="pkcs11", key=file.read_bytes()))
    plain, sealed = keeper.directory / "plain", keeper.directory / "sealed"
    sealed.write_bytes(cipher)
    descriptor = keeper.directory / "descriptor"
    described = {"mediaType": layer.media_type, "digest": layer.digest, "size": 0}
    descriptor.write_text(json.dumps({**described, "annotations": dict(layer.annotations)}))
    key = keeper.keys / "token.yaml"
    oracle(keeper, "decrypt", "-key", key, "-descriptor", descriptor, sealed, plain)

    assert plain.read_bytes() == PLAIN
    assert keeper.decrypt(layer, cipher) == PLAIN
    annotations = json.loads(oracle(keeper, "encrypt", "-recipient", f"pkcs11:{file}", plain, sealed))
    theirs = encrypted(annotations, sealed.read_bytes())
    assert keeper.check(theirs)[0].fingerprint == "pkcs11:object=layers;token=node"
    assert keeper.decrypt(theirs, sealed.read_bytes()) == PLAIN


def test_what_a_token_cannot_do_is_said_without_its_pin(keeper: Keeper) -> None:
    """A wrong PIN, a key that is not there and a module that is not allowed are named; no PIN is ever shown."""
    layer, _ = keeper.encrypt(
        PLAIN, keys_pb2.Recipient(scheme="pkcs11", key=(keeper.directory / "key.pub").read_bytes())
    )
    good = (keeper.keys / "token.yaml").read_text()
    said = {
        "PinIncorrect": good.replace(PIN, "another-pin"),
        "0 keys in the token fit": good.replace("object=layers", "object=other"),
        "no such token": good.replace("token=node", "token=other"),
        "is not allowed": good.replace("module-name=softhsm2", "module-path=/usr/lib/x86_64-linux-gnu/libc.so.6"),
    }
    try:
        for reason, text in said.items():
            (keeper.keys / "token.yaml").write_text(text)
            with pytest.raises(FailedPrecondition) as error:
                check_again(keeper, layer, reason)
            assert reason in str(error.value)
            assert "another-pin" not in str(error.value)
    finally:
        (keeper.keys / "token.yaml").write_text(good)
    assert PIN not in keeper.log
    assert "another-pin" not in keeper.log


def check_again(keeper: Keeper, layer: keys_pb2.Layer, reason: str) -> None:
    """Ask until the keys have been read anew: two seconds at the most, on a machine with nothing else to do."""
    deadline = time.monotonic() + 60
    while True:
        try:
            keeper.check(layer)
        except BulkheadError as error:
            if reason in str(error) or time.monotonic() > deadline:
                raise
        assert time.monotonic() < deadline, "the layer still opens"
        time.sleep(0.1)


def test_a_provider_behind_a_socket(keeper: Keeper) -> None:
    """A gRPC provider wraps and unwraps, and is sent nothing but its own parameters."""
    layer, cipher = keeper.encrypt(PLAIN, keys_pb2.Recipient(scheme="provider", name="vault", key=b"some=attribute"))
    wrapping = json.loads((keeper.directory / "request").read_text())

    assert wrapping["op"] == "keywrap"
    assert wrapping["keywrapparams"]["ec"]["Parameters"] == {"vault": ["c29tZT1hdHRyaWJ1dGU="]}
    assert keeper.check(layer)[0].fingerprint == "provider:vault"
    assert keeper.decrypt(layer, cipher) == PLAIN


def test_a_provider_across_the_network_is_refused_by_name(keeper: Keeper) -> None:
    """What the decryptor cannot reach says so in the list of keys, and in the error of a layer that needs it."""
    assert "the decryptor has no network" in keeper.listed()["provider:far"].error
    with pytest.raises(FailedPrecondition, match=r"'far' grpc is 'vault\.example\.com:50051'"):
        keeper.encrypt(PLAIN, keys_pb2.Recipient(scheme="provider", name="far"))


def test_the_modules_process_is_alone(keeper: Keeper) -> None:
    """The module is in no memory of the decryptor's: its library is mapped neither there nor in the helper."""
    assert keeper.process is not None
    # Keys that are read anew are looked for in the token, in a process that ends with that.
    eventually(lambda: len(children(keeper.process.pid)) == 1)  # type: ignore[union-attr]
    pids = [keeper.process.pid, *children(keeper.process.pid)]

    assert all("softhsm" not in Path(f"/proc/{pid}/maps").read_text() for pid in pids)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
