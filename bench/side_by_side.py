"""Start Bulkhead and a stock containerd with one network and one registry each their own, and run bench.py on both.

    bench/side_by_side.py [--containerd PATH] [--default runc|crun] [arguments of bench.py]

As root. Everything stands in scratch directories and in a network namespace of this process; the images are made from
Debian packages. Without --containerd, containerd 2 is built from its Go module first (minutes).
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from conformance.build import build  # noqa: E402 - found on the path set above
from support import images  # noqa: E402
from support.containerd import Containerd  # noqa: E402
from support.registry import registry  # noqa: E402
from support.stack import Stack  # noqa: E402

CLONE_NEWNET = 0x40000000
CRUN = """[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
BinaryName = "{wrapper}"
"""


def layered(compression: str) -> images.Image:
    """Return an image of eight layers, some 300 MB unpacked: the files of this system's /usr."""
    layers = [images.Layer() for _ in range(8)]
    total = 0
    for directory, _, names in os.walk("/usr/lib"):
        for name in names:
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            data = path.read_bytes()
            layers[hash(directory) % 8].file(str(path).lstrip("/"), data)
            total += len(data)
            if total > 300e6:
                return images.Image([layer.tar() for layer in layers], {}, compression=compression)
    return images.Image([layer.tar() for layer in layers], {}, compression=compression)


def crun_wrapper(directory: Path) -> Path:
    """Return a crun that works on a hybrid cgroup host, as Bulkhead's zygote arranges it for its own."""
    path = directory / "crun"
    path.write_text(
        "#!/bin/sh\n"
        'exec unshare -m --propagation unchanged sh -c "mount --make-rprivate /sys/fs/cgroup 2>/dev/null;'
        ' umount /sys/fs/cgroup/unified 2>/dev/null; exec /usr/bin/crun \\"\\$@\\"" crun "$@"\n'
    )
    path.chmod(0o755)
    return path


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--containerd", help="path of the containerd binary; its shim must stand beside it")
    parser.add_argument("--default", default="", help="Bulkhead's runtime: runc or crun; default: its own choice")
    parser.add_argument("--peer", default="runc", help="containerd's runtime: runc or crun")
    parser.add_argument("--compression", default="gzip", choices=("gzip", "zstd"))
    options, rest = parser.parse_known_args()
    binary = options.containerd or str(build("containerd")["containerd"])
    if ctypes.CDLL(None).unshare(CLONE_NEWNET) != 0:
        sys.exit("side_by_side: needs root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="bhbench") as scratch, registry(Path(scratch) / "registry") as address:
        pusher = images.Pusher(address)
        pusher.image("pause", "1", images.pause())
        pusher.image("busybox", "1", images.busybox())
        pusher.image("layers", "1", layered(options.compression))
        more = CRUN.format(wrapper=crun_wrapper(Path(scratch))) if options.peer == "crun" else ""
        peer = Containerd(address, binary, os.path.dirname(binary), default=options.peer, more=more)
        with Stack(address, default=options.default or "default") as ours, peer as theirs:
            command = [
                sys.executable,
                str(HERE / "bench.py"),
                f"bulkhead={ours.address}",
                f"containerd={theirs.address}",
                f"--image={address}/busybox:1",
                f"--pull-image={address}/layers:1",
                f"--match={re.escape(str(ours.directory))}",
                f"--match={re.escape(str(theirs.directory))}",
                *rest,
            ]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
