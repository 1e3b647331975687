"""A key in a token: SoftHSM, as the decryptor's user may use it."""

import os
from pathlib import Path

from support.encrypted import run

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
#: Nothing that a digest in a log could hold.
PIN = "no-digits"


class Token:
    """A SoftHSM token with one RSA key, which the decryptor's user may use."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "tokens").mkdir()
        conf = place / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {place}/tokens\nobjectstore.backend = file\n")
        module = f"{MODULE.parent}/"
        (place / "ocicrypt.conf").write_text(
            f"pkcs11:\n  module-directories:\n  - {module}\n  allowed-module-paths:\n  - {module}\n"
        )
        run("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", place / "t.pem")
        run("openssl", "pkey", "-in", place / "t.pem", "-pubout", "-out", place / "t.pub")
        tool = ("softhsm2-util", "--module", MODULE)
        environment = {**os.environ, "SOFTHSM2_CONF": str(conf)}
        run(*tool, "--init-token", "--free", "--label", "node", "--so-pin", "0000", "--pin", PIN, env=environment)
        known = ("--token", "node", "--label", "layers", "--id", "A1", "--pin", PIN)
        run(*tool, "--import", place / "t.pem", *known, env=environment)
        (place / "t.pem").unlink()
        (place / "token.yaml").write_text(
            f"pkcs11:\n  uri: pkcs11:token=node;object=layers?module-name=softhsm2&pin-value={PIN}\n"
            f"module:\n  env:\n    SOFTHSM2_CONF: {conf}\n"
        )
        run("chmod", "-R", "a+rwX", place)
