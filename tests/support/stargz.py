"""Snapshotters of others as processes of their own, stargz and overlayfs, and images that stargz can mount lazily."""

import gzip
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.build import build
from support.images import MEDIA, Pusher, compress, digest

TOC = "containerd.io/snapshot/stargz/toc.digest"


@dataclass
class Stargz:
    """A snapshotter over a scratch directory; use it as a context manager."""

    directory: Path
    #: The user who may call it, by group.
    gid: int
    #: Whether it is containerd's overlayfs snapshotter instead, known as `plain`.
    plain: bool = False
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        """Where it serves."""
        return self.directory / "stargz.sock"

    @property
    def root(self) -> Path:
        """Where its mounts lie: what the configuration has as exports.root."""
        return self.directory / "data" / ("" if self.plain else "snapshotter")

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.directory / "log").read_text()

    @property
    def config(self) -> str:
        """Return the tables that make it known."""
        name = "plain" if self.plain else "stargz"
        return (
            f'[proxy_plugins.{name}]\ntype = "snapshot"\naddress = "{self.socket}"\n'
            f'[proxy_plugins.{name}.exports]\nroot = "{self.root}"\n'
        )

    def start(self) -> None:
        """Start it and open its socket to the group."""
        self.socket.unlink(missing_ok=True)
        (self.directory / "data").mkdir(exist_ok=True)
        kind = "overlayfs" if self.plain else "serve"
        with (self.directory / "log").open("ab") as log:
            command = [str(build("stargz")["stargz"]), kind, str(self.socket), str(self.directory / "data")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not _answers(self.socket):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "stargz does not serve"
            time.sleep(0.05)
        os.chown(self.socket, 0, self.gid)
        self.socket.chmod(0o660)

    def kill(self) -> None:
        """Kill -9 it; its mounts stay, and are dead."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """Stop it, and unmount what it left."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
        for path in mounted(self.directory):
            subprocess.run(["umount", "-l", path], check=False, timeout=30)

    def __enter__(self) -> "Stargz":
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o711)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def mounted(directory: Path) -> list[str]:
    """Return the mount points below a directory, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [place for line in reversed(lines) if (place := line.split(" ")[1]).startswith(f"{directory}/")]


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def push(
    pusher: Pusher,
    repository: str,
    tag: str,
    layers: list[bytes],
    scratch: Path,
    ordinary: Sequence[bytes] = (),
    beneath: Sequence[bytes] = (),
) -> list[str]:
    """Upload an image of eStargz layers made of these tars, ordinary ones upon and beneath them; return its blobs."""
    described = [_entry(pusher, repository, compress(tar, "gzip")) for tar in beneath]
    for number, tar in enumerate(layers):
        plain, made = scratch / f"{number}.tar", scratch / f"{number}.esgz"
        plain.write_bytes(tar)
        command = [str(build("stargz")["stargz"]), "convert", str(plain), str(made)]
        toc = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        described.append(_entry(pusher, repository, made.read_bytes(), annotations={TOC: toc}))
    described += [_entry(pusher, repository, compress(tar, "gzip")) for tar in ordinary]
    diff_ids = [each.pop("diff_id") for each in described]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    pusher.blob(repository, config)
    body = {
        "schemaVersion": 2,
        "mediaType": MEDIA["oci"]["manifest"],
        "config": {"mediaType": MEDIA["oci"]["config"], "size": len(config), "digest": digest(config)},
        "layers": described,
    }
    pusher.manifest(repository, tag, json.dumps(body).encode(), MEDIA["oci"]["manifest"])
    return [str(each["digest"]) for each in described]


def _entry(pusher: Pusher, repository: str, blob: bytes, **fields: object) -> dict[str, object]:
    """Upload a layer and return its descriptor, with its diff id besides."""
    pusher.blob(repository, blob)
    described = {"mediaType": MEDIA["oci"]["gzip"], "size": len(blob), "digest": digest(blob)}
    return {**described, **fields, "diff_id": digest(gzip.decompress(blob))}
