"""The real decryptor meets what would take for ever: each ends by a bound of its own, and the rest goes on."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.errors import FailedPrecondition
from bulkhead.proto import keys_pb2
from decryptor import options
from decryptor.costs import ROUNDS_LIMIT
from decryptor.options import Private
from support.encrypted import eventually, tree
from support.keeper import Keeper, encrypted
from support.openpgp import message, packet, squeezed

pytestmark = pytest.mark.root


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A decryptor that is not started yet."""
    made = Keeper()
    made.prepare()
    yield made
    made.stop()
    shutil.rmtree(made.directory)


def openssl(*arguments: object, data: bytes = b"") -> bytes:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, input=data).stdout


def test_a_password_that_takes_for_ever_costs_its_key_alone(keeper: Keeper) -> None:
    """Of keys that openssl protects, those within the bounds open; the start waits for no other, and names it."""
    plain = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    how = {
        "pbkdf2.pem": ("-iter", 100_000),
        "scrypt.pem": ("-scrypt",),
        "pkcs12.pem": ("-v1", "PBE-SHA1-3DES", "-iter", 50_000),
        "slow.der": ("-iter", ROUNDS_LIMIT + 1, "-outform", "DER"),
    }
    for name, words in how.items():
        protected = openssl("pkcs8", "-topk8", "-passout", "pass:secret", *words, data=plain)
        if name == "slow.der":  # more rounds than openssl is to do here, in as many bytes
            stated = b"\x02\x03" + (ROUNDS_LIMIT + 1).to_bytes(3, "big")
            assert protected.count(stated) == 1
            protected = protected.replace(stated, b"\x02\x03\x7f\xff\xff")
        (keeper.keys / name).write_bytes(protected)
        (keeper.keys / f"{name}.password").write_text("secret\n")
    began = time.monotonic()
    keeper.start()

    assert time.monotonic() - began < 40
    keys = keeper.listed()
    assert [name for name, key in keys.items() if not key.error] == ["pbkdf2.pem", "pkcs12.pem", "scrypt.pem"]
    assert keys["slow.der"].error.startswith(f"is protected by {0x7FFFFF} rounds of key derivation")
    assert "key file 'slow.der' cannot be used: is protected by 8388607 rounds" in keeper.log


#: A PKCS#11 module whose first call never returns.
STUCK = "#include <unistd.h>\nint C_GetFunctionList(void *list) { for (;;) pause(); }\n"


@pytest.fixture
def stuck(keeper: Keeper) -> Iterator[Keeper]:
    """A decryptor that waits a second for keys, whose providers and whose token's module never answer."""
    place = keeper.directory
    (place / "stuck.c").write_text(STUCK)
    subprocess.run(["gcc", "-shared", "-o", place / "stuck.so", place / "stuck.c"], check=True, timeout=60)
    (place / "ocicrypt.conf").write_text(f"pkcs11:\n  allowed-module-paths:\n  - {place}/stuck.so\n")
    uri = f"pkcs11:token=t;object=o?module-path={place}/stuck.so&pin-value=1"
    (keeper.keys / "token.yaml").write_text(f"pkcs11:\n  uri: {uri}\n")
    providers = {"slow": {"cmd": {"path": "/bin/sleep", "args": ["1000"]}}, "mute": {"grpc": f"unix://{place}/mute"}}
    (place / "providers.json").write_text(json.dumps({"key-providers": providers}))
    keeper.environment = {
        "OCICRYPT_KEYPROVIDER_CONFIG": f"{place}/providers.json",
        "OCICRYPT_CONFIG": f"{place}/ocicrypt.conf",
    }
    keeper.extra = 'key_timeout = "1s"'
    keeper.prepare()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{place}/mute")
        mute.listen()
        keeper.start()
        yield keeper


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("provider.slow", "key provider 'slow': /bin/sleep"),
        ("provider.mute", "key provider 'mute' at unix:"),
        ("pkcs11", "pkcs11:object=o;token=t: "),
    ],
)
def test_who_never_answers_is_not_waited_for(stuck: Keeper, scheme: str, expected: str) -> None:
    """A provider, as a program or a server, and a token that hang end in a refusal after key_timeout, by name."""
    blob = b'{"version":0,"recipients":[{"version":0,"blob":"AAAA","hash":"sha1"}]}'
    notes = {options.WRAPPED + scheme: options.encode(blob), options.PUBLIC: options.to_annotation(bytes(32))}
    layer = encrypted(notes, b"cipher")
    began = time.monotonic()
    with pytest.raises(FailedPrecondition) as refused:
        stuck.check(layer)

    assert 1 <= time.monotonic() - began < 40
    assert expected in str(refused.value)
    pid = stuck.process.pid  # type: ignore[union-attr]
    eventually(lambda: not [name for name in tree(pid).values() if "sleep" in name or "pkcs11" in name])


def test_an_openpgp_message_that_unfolds(keeper: Keeper) -> None:
    """A few hundred bytes that hold a gibibyte cost neither the decryptor's memory nor anybody's time."""
    home = {**os.environ, "GNUPGHOME": str(keeper.directory / "gnupg")}
    (keeper.directory / "gnupg").mkdir(mode=0o700)

    def gpg(*words: str) -> bytes:
        command = ["gpg", "--batch", "-q", "--pinentry-mode", "loopback", "--passphrase", "", *words]
        return subprocess.run(command, check=True, capture_output=True, timeout=60, env=home).stdout

    gpg("--quick-gen-key", "node@example.com", "rsa2048", "encrypt", "never")
    (keeper.keys / "ring.gpg").write_bytes(gpg("--export-secret-keys"))
    public = gpg("--export")
    subprocess.run(["gpgconf", "--kill", "all"], env=home, check=True, timeout=30)
    keeper.start()

    def layer(content: bytes) -> keys_pb2.Layer:
        blob = options.encode(message(content, public))
        return encrypted({options.WRAPPED + "pgp": blob, options.PUBLIC: options.to_annotation(bytes(32))}, b"cipher")

    private = Private(bytes(32), bytes(16), "").to_json()
    gibibyte = itertools.chain([b"\xcb\xff\x40\0\0\x06b\0\0\0\0\0"], itertools.repeat(bytes(1 << 20), 1024))
    bomb = squeezed([squeezed([squeezed(gibibyte)])])
    assert len(bomb) < 1000
    # What is wrapped like this, and small, opens: it is the size that is refused.
    honest = packet(11, b"b\0" + bytes(4) + private)
    assert keeper.check(layer(squeezed([squeezed([honest])])))[0].scheme == "pgp"
    began = time.monotonic()
    with pytest.raises(FailedPrecondition, match=r"OpenPGP message whose reading ended|not wrapped for this key"):
        keeper.check(layer(bomb))

    assert time.monotonic() - began < 50
    assert keeper.process is not None
    peak = next(line for line in Path(f"/proc/{keeper.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    assert int(peak.split()[1]) < 200_000
