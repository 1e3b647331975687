"""The real decryptor meets what would take for ever: each ends by a bound of its own, and the rest goes on."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from bulkhead.errors import FailedPrecondition
from decryptor import options
from decryptor.costs import ROUNDS_LIMIT
from support.encrypted import tree
from support.keeper import Keeper, encrypted

pytestmark = pytest.mark.root


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A decryptor that is not started yet."""
    made = Keeper()
    made.prepare()
    yield made
    made.stop()


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

    assert time.monotonic() - began < 10
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

    assert 1 <= time.monotonic() - began < 8
    assert expected in str(refused.value)
    assert [process for process in tree(stuck.process.pid).values() if "sleep" in process or "pkcs11" in process] == []  # type: ignore[union-attr]
