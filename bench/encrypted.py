"""Time the pull of one large image, plain and encrypted, in turn, each onto a fresh file system.

    bench/encrypted.py [--rounds 5] [--compression gzip] [--cache warm] [--scheme jwe]

As root. The image is that of pulls.py; skopeo encrypts it for one RSA key of 2048 bits, which is the node's. Printed
are medians: of the seconds until PullImage has answered, and of the processor seconds of the whole stack.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

# Beside this script, which mypy does not know to be a place to look in.
from pulls import CLONE_NEWNET, LIBC, Side, layered, table  # type: ignore[import-not-found] # noqa: E402

from support import images  # noqa: E402
from support.encrypted import make_keys, run  # noqa: E402
from support.registry import registry  # noqa: E402
from support.stack import Stack  # noqa: E402


def node(address: str, directory: Path, keys: Path) -> Stack:
    """Return a stack that has the key."""
    (directory / "keys").mkdir()
    for name in ("mykey.pem", "mykey.crt"):
        (directory / "keys" / name).write_bytes((keys / name).read_bytes())
    return Stack(address, directory=directory)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compression", choices=("gzip", "zstd"), default="gzip")
    parser.add_argument("--cache", choices=("cold", "warm"), default="warm")
    parser.add_argument("--scheme", choices=("jwe", "pkcs7"), default="jwe")
    options = parser.parse_args()
    if LIBC.unshare(CLONE_NEWNET) != 0:
        sys.exit("encrypted: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="bhbench") as name, registry(Path(name) / "registry") as address:
        scratch = Path(name)
        make_keys(scratch)
        pusher = images.Pusher(address)
        pusher.image("pause", "1", images.pause())
        image = images.Image(layered(), {}, compression=options.compression)
        size = sum(map(len, image.blobs()[1]))
        pusher.image("layers", "plain", image)
        print(f"{len(image.layers)} layers, {size / 1e6:.0f} MB as {options.compression}, {options.scheme}")
        images.compress.cache_clear()
        del image
        recipient = scratch / ("mykey.pub" if options.scheme == "jwe" else "mykey.crt")
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        names = (f"docker://{address}/layers:plain", f"docker://{address}/layers:encrypted")
        run("skopeo", "--insecure-policy", "copy", *tls, "--encryption-key", f"{options.scheme}:{recipient}", *names)
        sides = [Side(each, lambda place: node(address, place, scratch)) for each in ("encrypted", "plain")]
        for _ in range(options.rounds):
            for side in sides:
                kind = (options.compression, options.cache)
                side.pull(f"{address}/layers:{side.name}", kind, scratch, weigh=False)
        print(table(sides))


if __name__ == "__main__":
    main()
