"""image-svc and its unpack helper as they run on a node: without privileges, and with six capabilities."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bulkhead import rpc
from bulkhead.proto import images_pb2_grpc
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.proto.runtime.v1 import api_pb2_grpc as cri_grpc

BIN = Path(sys.executable).parent
#: A user that owns nothing else; the real one is made at installation.
USER = pwd.getpwnam("nobody")


@dataclass
class Service:
    """A running image-svc with its helper."""

    directory: Path
    config: Path
    process: "subprocess.Popen[bytes]" = field(init=False)
    helper: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.start_helper()
        self.start()
        channel = rpc.channel(str(self.directory / "state/io.bulkhead/image-svc/grpc.sock"))
        self.channel = channel
        self.cri = cri_grpc.ImageServiceStub(channel)
        self.run = images_pb2_grpc.ImagesStub(channel)

    def start(self) -> None:
        """Start image-svc without privileges."""
        drop = ["setpriv", f"--reuid={USER.pw_uid}", f"--regid={USER.pw_gid}", "--clear-groups", "--bounding-set=-all"]
        self.process = self._spawn([*drop, str(BIN / "image-svc")])

    def start_helper(self) -> None:
        """Start the unpack helper."""
        self.helper = self._spawn([str(BIN / "image-svc-unpack")])

    def _spawn(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with (self.directory / "image-svc.log").open("ab") as log:
            return subprocess.Popen([*command, "--config", str(self.config)], stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill -9 image-svc and start it again, as its supervisor does."""
        self.process.kill()
        self.process.wait(30)
        self.start()

    def kill_helper(self) -> None:
        """Kill -9 the unpack helper, whose workers die with it, and start it again."""
        self.helper.kill()
        self.helper.wait(30)
        self.start_helper()

    def kill_workers(self) -> None:
        """Kill -9 what the helper has started."""
        text = Path(f"/proc/{self.helper.pid}/task/{self.helper.pid}/children").read_text()
        for pid in map(int, text.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pull(self, image: str, **auth: str) -> str:
        """Pull an image and return its id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        if auth:
            request.auth.CopyFrom(cri.AuthConfig(**auth))
        return str(self.cri.PullImage(request, timeout=60, wait_for_ready=True).image_ref)

    def names(self) -> list[str]:
        """Return the tags of all images."""
        images = self.cri.ListImages(cri.ListImagesRequest(), timeout=30).images
        return sorted(tag for image in images for tag in image.repo_tags)

    @property
    def log(self) -> str:
        """Everything the service wrote so far."""
        return (self.directory / "image-svc.log").read_text()


def configure(directory: Path, own: str = "", more: str = "") -> Path:
    """Lay out the directories as the supervisor does and write a configuration.

    `own` are further lines of `[bulkhead]`, `more` further tables.
    """
    root, state = directory / "root/io.bulkhead", directory / "state/io.bulkhead"
    for path in (
        root / "snapshots",
        state / "image-svc",
        state / "decryptor",
        directory / "certs.d",
        directory / "keys",
    ):
        path.mkdir(parents=True, exist_ok=True)
    for path in (directory, directory / "root", directory / "state", root, root / "snapshots", state):
        path.chmod(0o711)
    # A directory with the set-group-id bit gives the socket in it the group of its callers.
    os.chown(state / "decryptor", -1, USER.pw_gid)
    (state / "decryptor").chmod(0o2711)
    for path in (root, state / "image-svc"):
        os.chown(path, USER.pw_uid, USER.pw_gid)
    config = directory / "config.toml"
    config.write_text(
        f"""version = 3
root = "{directory}/root"
state = "{directory}/state"
[debug]
level = "debug"
[bulkhead]
metrics_ports = {{ image-svc = 0, decryptor = -1 }}
users = {{ image-svc = "nobody" }}
decryption_keys_path = "{directory}/keys"
{own}
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{directory}/certs.d"
{more}
"""
    )
    return config


@contextmanager
def service(directory: Path, own: str = "", more: str = "") -> Iterator[Service]:
    """Run image-svc without privileges, and its helper."""
    made = Service(directory, configure(directory, own, more))
    try:
        yield made
    finally:
        made.channel.close()
        for each in (made.process, made.helper):
            each.send_signal(signal.SIGTERM)
        for each in (made.process, made.helper):
            try:
                each.wait(30)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait(30)
