"""Images for the tests, built from Debian packages and small C sources, and pushed to a registry."""

import gzip
import hashlib
import http.client
import io
import json
import re
import subprocess
import tarfile
import tempfile
import urllib.parse
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

PAUSE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, leave); signal(SIGTERM, leave); signal(SIGCHLD, reap);
    for (;;) pause();
}
"""
ETC_PASSWD = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
ETC_GROUP = "root:x:0:\nwww:x:33:\nextra:x:5000:www\nnogroup:x:65534:\n"

MEDIA = {
    "oci": {
        "index": "application/vnd.oci.image.index.v1+json",
        "manifest": "application/vnd.oci.image.manifest.v1+json",
        "config": "application/vnd.oci.image.config.v1+json",
        "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
        "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
        "plain": "application/vnd.oci.image.layer.v1.tar",
    },
    "docker": {
        "index": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifest": "application/vnd.docker.distribution.manifest.v2+json",
        "config": "application/vnd.docker.container.image.v1+json",
        "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "plain": "application/vnd.docker.image.rootfs.diff.tar",
    },
}


def digest(data: bytes) -> str:
    """Return the sha256 digest string of some bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layer:
    """A tar layer under construction; entries keep the order in which they were added."""

    def __init__(self) -> None:
        self.entries: list[tuple[tarfile.TarInfo, bytes]] = []

    def add(self, name: str, kind: bytes, data: bytes = b"", *, mode: int = 0o644, **fields: Any) -> "Layer":
        """Add one entry as it stands, hostile names included; `fields` are TarInfo's (uid, gid, linkname, …)."""
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.size, info.mtime = kind, mode, len(data), 1_700_000_000
        for key, value in fields.items():
            setattr(info, key, value)
        self.entries.append((info, data))
        return self

    def dir(self, name: str, mode: int = 0o755, **fields: Any) -> "Layer":
        """Add a directory."""
        return self.add(name, tarfile.DIRTYPE, mode=mode, **fields)

    def file(self, name: str, data: bytes | str = b"", mode: int = 0o644, **fields: Any) -> "Layer":
        """Add a regular file."""
        return self.add(name, tarfile.REGTYPE, data.encode() if isinstance(data, str) else data, mode=mode, **fields)

    def symlink(self, name: str, target: str) -> "Layer":
        """Add a symbolic link."""
        return self.add(name, tarfile.SYMTYPE, mode=0o777, linkname=target)

    def hardlink(self, name: str, target: str) -> "Layer":
        """Add a hard link to an earlier entry."""
        return self.add(name, tarfile.LNKTYPE, linkname=target)

    def tar(self) -> bytes:
        """Return the layer as an uncompressed tar."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for info, data in self.entries:
                archive.addfile(info, io.BytesIO(data) if data else None)
        return buffer.getvalue()


@cache
def pause_binary() -> bytes:
    """Return a static program that sleeps until SIGTERM."""
    return compile_static(PAUSE)


@cache
def compile_static(source: str) -> bytes:
    """Compile one C file to a static binary."""
    # Not to /dev/stdout: the linker replaces the symlink of that name by its output.
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory, "binary")
        command = ["gcc", "-Os", "-static", "-s", "-Wl,--build-id=none", "-xc", "-", "-o", str(binary)]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True, timeout=120)
        return binary.read_bytes()


@cache
def busybox_layer() -> bytes:
    """Return a root file system of Debian's busybox, the libraries it needs, and the usual directories."""
    layer = Layer()
    for name in ("bin", "dev", "etc", "lib64", "proc", "root", "sys", "usr", "usr/bin", "var", "var/www"):
        layer.dir(name)
    layer.dir("tmp", 0o1777)
    layer.file("etc/passwd", ETC_PASSWD).file("etc/group", ETC_GROUP)
    binary = Path("/bin/busybox").read_bytes()
    layer.file("bin/busybox", binary, 0o755)
    listing = subprocess.run(["ldd", "/bin/busybox"], check=False, capture_output=True, text=True, timeout=30).stdout
    made: set[str] = set()
    for path in re.findall(r"(/\S+)\s+\(0x", listing):
        parents = list(Path(path.lstrip("/")).parents)[:-1]
        for parent in reversed(parents):
            if str(parent) not in made and str(parent) != "lib64":
                made.add(str(parent))
                layer.dir(str(parent))
        layer.file(path.lstrip("/"), Path(path).read_bytes(), 0o755)
    applets = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True, timeout=30).stdout
    for applet in applets.split():
        if applet not in ("busybox", "su"):
            layer.add(f"bin/{applet}", tarfile.LNKTYPE, mode=0o755, linkname="bin/busybox")
    return layer.tar()


@dataclass
class Image:
    """An image to push: uncompressed layers, an image configuration, and how it is stored."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    family: str = "oci"
    compression: str = "gzip"
    architecture: str = "amd64"

    def blobs(self) -> tuple[bytes, list[bytes]]:
        """Return the image configuration and the compressed layers."""
        compressed = [compress(layer, self.compression) for layer in self.layers]
        config = {
            "architecture": self.architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"], **self.config},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
        }
        return json.dumps(config, sort_keys=True).encode(), compressed

    def manifest(self) -> bytes:
        """Return the manifest."""
        media = MEDIA[self.family]
        config, layers = self.blobs()
        described = [
            {"mediaType": media[self.compression], "size": len(blob), "digest": digest(blob)} for blob in layers
        ]
        body = {
            "schemaVersion": 2,
            "mediaType": media["manifest"],
            "config": {"mediaType": media["config"], "size": len(config), "digest": digest(config)},
            "layers": described,
        }
        return json.dumps(body, sort_keys=True).encode()


@cache
def compress(layer: bytes, how: str) -> bytes:
    """Return the layer as gzip, zstd or as it is."""
    if how == "gzip":
        return gzip.compress(layer, 6, mtime=0)
    return zstandard.compress(layer) if how == "zstd" else layer


class Pusher:
    """Pushes to a plain-HTTP registry."""

    def __init__(self, address: str, authorization: str = "") -> None:
        self.address, self.headers = address, {"Authorization": authorization} if authorization else {}

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        """Send one request; the connection is closed once the answer was read."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body, {**self.headers, **headers})
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined] # kept beside the answer for errors
        connection.close()
        return response

    def blob(self, repository: str, data: bytes) -> None:
        """Upload one blob unless it is there."""
        name = digest(data)
        if self.request("HEAD", f"/v2/{repository}/blobs/{name}").status == 200:
            return
        started = self.request("POST", f"/v2/{repository}/blobs/uploads/", b"")
        location = urllib.parse.urlsplit(started.getheader("Location") or "")
        query = f"{location.query}&digest={urllib.parse.quote(name)}".lstrip("&")
        done = self.request("PUT", f"{location.path}?{query}", data)
        assert done.status == 201, (repository, done.status)

    def manifest(self, repository: str, reference: str, body: bytes, media: str) -> str:
        """Upload one manifest and return its digest."""
        done = self.request("PUT", f"/v2/{repository}/manifests/{reference}", body, **{"Content-Type": media})
        assert done.status == 201, (repository, reference, done.status)
        return digest(body)

    def image(self, repository: str, tag: str, image: Image) -> str:
        """Upload an image and return its manifest's digest."""
        config, layers = image.blobs()
        for blob in (config, *layers):
            self.blob(repository, blob)
        return self.manifest(repository, tag, image.manifest(), MEDIA[image.family]["manifest"])

    def index(self, repository: str, tag: str, images: list[Image]) -> str:
        """Upload images of several architectures under one tag and return the index's digest."""
        media = MEDIA[images[0].family]
        entries = []
        for image in images:
            body = image.manifest()
            name = self.image(repository, digest(body), image)
            platform = {"architecture": image.architecture, "os": "linux"}
            entries.append({"mediaType": media["manifest"], "size": len(body), "digest": name, "platform": platform})
        document = {"schemaVersion": 2, "mediaType": media["index"], "manifests": entries}
        return self.manifest(repository, tag, json.dumps(document).encode(), media["index"])


def pause() -> Image:
    """Return the pause image."""
    return Image(
        [Layer().file("pause", pause_binary(), 0o755).tar()], {"Entrypoint": ["/pause"], "User": "65535:65535"}
    )


def busybox(**config: Any) -> Image:
    """Return an image of busybox; `config` goes into its image configuration (Cmd, Env, User, …)."""
    return Image([busybox_layer()], {"Cmd": ["sh"], **config})
