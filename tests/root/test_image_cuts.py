"""Pulls that are cut, again and again, and pulls that want the same: every byte is fetched about once."""

import os
import random
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from support.fake_registry import FakeRegistry, Handler, fake_registry
from support.image_service import Service, service
from support.images import Image, Layer, digest
from support.unpack import unmount

pytestmark = pytest.mark.root

PIECE = 64 * 1024


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory that every user may search."""
    directory = Path(tempfile.mkdtemp(prefix="bhcuts"))
    yield directory
    shutil.rmtree(directory)


class Cutter:
    """Serves one blob, slowly, and does something terrible at each of the offsets given."""

    def __init__(self, blob: bytes, cuts: list[tuple[int, Callable[[], None] | None]]) -> None:
        """`cuts` are offsets, each with what is killed there; None breaks the connection off."""
        self._blob = blob
        self._cuts = sorted(cuts, key=lambda cut: cut[0])
        self._lock = threading.Lock()
        self.sent = 0
        self.ranges: list[int] = []

    def serve(self, handler: Handler) -> bool:
        """Answer from the byte asked for, up to the next cut."""
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", ""))
        offset = int(match[1]) if match else 0
        self.ranges.append(offset)
        handler.send_response(206 if match else 200)
        handler.send_header("Content-Length", str(len(self._blob) - offset))
        if match:
            handler.send_header("Content-Range", f"bytes {offset}-{len(self._blob) - 1}/{len(self._blob)}")
        handler.end_headers()
        while offset < len(self._blob):
            end = min(offset + PIECE, len(self._blob))
            if self._cuts and self._cuts[0][0] < end:
                end = max(self._cuts[0][0], offset)
                kill = self._cuts.pop(0)[1]
                self._send(handler, offset, end)
                if kill is None:
                    return handler.break_off()
                self._read(handler)
                kill()
            else:
                self._send(handler, offset, end)
            offset = end
        return True

    def _read(self, handler: Handler) -> None:
        """Wait until the client has read what was sent: what it has not when it is killed would count as fetched."""
        deadline = time.monotonic() + 5
        while queued(handler.connection.getsockname()[1], handler.client_address[1]) and time.monotonic() < deadline:
            time.sleep(0.001)

    def _send(self, handler: Handler, offset: int, end: int) -> None:
        handler.wfile.write(self._blob[offset:end])
        with self._lock:
            self.sent += end - offset


def queued(server: int, client: int) -> int:
    """Return the bytes on the way from one port of the loopback to another: not yet arrived, or not yet read."""
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        sending, receiving = (int(part, 16) for part in queues.split(":"))
        found += sending if ports == (server, client) else receiving if ports == (client, server) else 0
    return found


def pull_like_a_kubelet(node: Service, name: str) -> int:
    """Pull until it works; return how many times that was asked for."""
    for count in range(1, 30):
        try:
            node.pull(name)
        except grpc.RpcError:
            time.sleep(0.2)
        else:
            return count
    raise AssertionError(f"{name} is never pulled:\n{node.log[-4000:]}")


@pytest.mark.parametrize("compression", ["plain", "gzip"])
def test_ten_cuts(place: Path, own_network: None, compression: str) -> None:
    """Connection, service, helper and worker die at random offsets, ten times: a tenth at most is fetched twice."""
    seed = int.from_bytes(os.urandom(4), "big")
    dice = random.Random(seed)
    data = [(f"file{number}", dice.randbytes(3 << 20)) for number in range(8)]
    layer = Layer()
    for file, content in data:
        layer.file(file, content)
    image = Image([layer.tar()], compression=compression)
    blob = image.blobs()[1][0]
    with fake_registry() as fake, service(place) as node:
        fake.push("app", "1", image)
        kinds = [None, None, None, None, node.kill, node.kill, node.kill_helper, node.kill_helper]
        kinds += [node.kill_workers] * 2
        cutter = Cutter(blob, [(dice.randrange(len(blob)), kind) for kind in kinds])
        fake.on(digest(blob), cutter.serve)

        tries = pull_like_a_kubelet(node, f"{fake.address}/app:1")

        assert tries <= 3, f"seed {seed}: only the service's own death is the kubelet's to notice\n{node.log[-3000:]}"
        assert node.names() == [f"{fake.address}/app:1"]
        assert cutter.sent <= 1.1 * len(blob), (seed, cutter.sent / len(blob), cutter.ranges)
        (tree,) = (place / "root/io.bulkhead/snapshots").glob("[0-9]*/fs")
        assert {path.name: path.read_bytes() for path in tree.iterdir()} == dict(data)


@contextmanager
def crowd(place: Path) -> Iterator[tuple[Service, FakeRegistry, list[str], set[str]]]:
    """Yield a node with two unpack slots, a registry of 20 images made of 10 layers, their names, and the blobs."""
    dice = random.Random(7)
    layers = [Layer().file(f"file{n}", dice.randbytes(200_000)).tar() for n in range(10)]
    with fake_registry() as fake, service(place, own="unpack_slots = 2") as node:
        names, blobs = [], set()
        for number in range(20):
            image = Image(dice.sample(layers, 4), {"Labels": {"number": str(number)}})
            fake.push("app", str(number), image)
            names.append(f"{fake.address}/app:{number}")
            blobs |= {digest(blob) for blob in image.blobs()[1]}
        yield node, fake, names, blobs


def test_twenty_overlapping_pulls(place: Path, own_network: None) -> None:
    """With two slots for unpacking and twenty pulls at once, every blob is fetched once and every image is there."""
    with crowd(place) as (node, fake, names, blobs), ThreadPoolExecutor(len(names)) as pool:
        ids = list(pool.map(node.pull, names))

        assert len(set(ids)) == len(names)
        assert node.names() == sorted(names)
        assert {blob: len(fake.asked(blob)) for blob in blobs} == dict.fromkeys(blobs, 1)


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """Return a directory on an ext4 of its own of 24 MB."""
    place.chmod(0o711)
    disk = place / "disk"
    with disk.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(disk)], check=True, timeout=60)
    mounted = place / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=True, timeout=60)
    yield mounted
    unmount(mounted)


@pytest.mark.parametrize("dense", [True, False], ids=["the blob", "the files"])
def test_a_full_disk(small: Path, own_network: None, dense: bool) -> None:
    """A pull that fills the disk says how much is missing, gives back what it took, and others go on."""
    content = random.Random(1).randbytes(30 << 20) if dense else bytes(40 << 20)
    big = Image([Layer().file("big", content).tar(), Layer().file("other", "x").tar()])
    fits = Image([Layer().file("small", "y").tar()])
    with fake_registry() as fake, service(small) as node:
        fake.push("big", "1", big)
        fake.push("fits", "1", fits)
        fake.push("first", "1", Image([Layer().file("first", "z").tar()]))
        node.pull(f"{fake.address}/first:1")  # so the database is there, and what it keeps in reserve
        free = os.statvfs(small).f_bfree

        with pytest.raises(grpc.RpcError, match=r"No space left.*at least (\d+) bytes are missing on") as caught:
            node.pull(f"{fake.address}/big:1")

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        missing = int(re.findall(r"at least (\d+) bytes", str(caught.value.details()))[0])
        assert 0 < missing < len(content) * 2
        deadline = time.monotonic() + 60
        while os.statvfs(small).f_bfree < free - 400 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert os.statvfs(small).f_bfree >= free - 400  # blocks of 1 or 4 KiB: records and manifests
        node.pull(f"{fake.address}/fits:1")
        assert node.names() == [f"{fake.address}/first:1", f"{fake.address}/fits:1"]
