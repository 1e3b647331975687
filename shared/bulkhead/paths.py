"""Where things stand below the state directory: every path that two processes must agree on.

`state` is `<state>/io.bulkhead` (a tmpfs), `root` is `<root>/io.bulkhead`. A unix socket's path holds at most 107
bytes (unix(7)), so the names here are short.
"""

import hashlib
from pathlib import Path

SOCKET_PATH_LIMIT = 107


def service_socket(state: Path, service: str) -> Path:
    """Return the gRPC socket of a service, in a directory that only its own user may write."""
    return state / service / "grpc.sock"


def layer_socket(state: Path) -> Path:
    """Return the socket on which the decryptor takes layers and grants (keys.proto says what is spoken there)."""
    return state / "decryptor" / "layers.sock"


def cri_socket(state: Path) -> Path:
    """Return the frontend's CRI socket; the address in the configuration is a symbolic link to it."""
    return state / "cri-frontend" / "cri.sock"


def unpack_socket(state: Path) -> Path:
    """Return the socket on which the unpack helper serves image-svc."""
    return state / "image-svc-unpack" / "unpack.sock"


def zygote_socket(state: Path) -> Path:
    """Return the socket on which the zygote takes orders from sandbox-svc."""
    return state / "zygote" / "fork.sock"


def shim_directory(state: Path, sandbox_id: str) -> Path:
    """Return the directory of a pod's shim sockets: root's, searchable by stream-svc."""
    return state / "s" / hashlib.sha256(sandbox_id.encode()).hexdigest()[:16]


def task_socket(state: Path, sandbox_id: str) -> Path:
    """Return the shim's ttrpc socket (root only)."""
    return shim_directory(state, sandbox_id) / "task"


def stream_socket(state: Path, token: str) -> Path:
    """Return the shim's socket for streams, from a ticket `<16 hex of the directory>-<secret>`."""
    return state / "s" / token.partition("-")[0] / "stream"


def bundle(state: Path, container_id: str) -> Path:
    """Return the OCI bundle of a container or sandbox."""
    return state / "bundles" / container_id


def netns(state: Path, sandbox_id: str, *, under_state: bool) -> Path:
    """Return the bind-mounted network namespace of a pod (netns_mounts_under_state_dir, containerd)."""
    return (state / "netns" if under_state else Path("/run/netns")) / f"cni-{sandbox_id}"


def image_records(root: Path) -> Path:
    """Return image-svc's own directory: its database, and what SQLite keeps beside it."""
    return root / "image-svc"
