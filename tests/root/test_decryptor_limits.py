"""The real decryptor meets what would take for ever: each ends by a bound of its own, and the rest goes on."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from decryptor.costs import ROUNDS_LIMIT
from support.keeper import Keeper

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
