"""Which entry of an image index fits this machine (github.com/containerd/platforms)."""

import platform as host_platform
from collections.abc import Sequence
from dataclasses import dataclass

_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "amd64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "arm64": "arm64",
    "armhf": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
}


@dataclass(frozen=True)
class Platform:
    """Operating system, architecture and its variant, in Go's names."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def normalize(os: str, architecture: str, variant: str = "") -> Platform:
    """Return the canonical names: aarch64 is arm64, arm64 v8 and amd64 v1 go without saying, arm means v7."""
    arch, var = architecture.lower(), variant.lower()
    if arch == "armel":
        return Platform(os.lower(), "arm", "v6")
    if arch == "armv6l":
        var = var or "v6"
    arch = _ARCHITECTURES.get(arch, arch)
    if arch == "arm":
        var = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(var, var)
    elif (arch, var) in (("arm64", "8"), ("arm64", "v8"), ("arm64", "v8.0"), ("amd64", "v1")):
        var = ""
    return Platform(os.lower(), arch, var)


def current() -> Platform:
    """Return this machine's platform."""
    machine = host_platform.machine()
    found = normalize(host_platform.system(), machine)
    if found.architecture == "amd64":
        return Platform(found.os, found.architecture, _amd64_level())
    return found


def _amd64_level() -> str:
    """Return the x86-64 micro-architecture level of the processor: "", "v2", "v3" or "v4"."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""
    have, level = set(flags.partition(":")[2].split()), ""
    for name, needed in _LEVELS:
        if not needed <= have:
            break
        level = name
    return level


_LEVELS = (
    ("v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
    ("v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


def preference(host: Platform) -> list[Platform]:
    """Return what the host runs, best first: its own variant, then the older ones, then 32-bit."""
    if host.architecture == "amd64":
        top = int(host.variant[1:]) if host.variant else 1
        levels = [Platform(host.os, "amd64", f"v{n}" if n > 1 else "") for n in range(top, 0, -1)]
        return [*levels, Platform(host.os, "386")]
    if host.architecture == "arm":
        top = int(host.variant[1:2] or "7") if host.variant[1:2].isdigit() else 7
        return [Platform(host.os, "arm", f"v{n}") for n in range(top, 4, -1)]
    if host.architecture == "arm64":
        own = [host] if host.variant else []
        return [*own, Platform(host.os, "arm64"), *(Platform(host.os, "arm", f"v{n}") for n in (8, 7, 6, 5))]
    return [host]


def choose(offered: Sequence[Platform | None], host: Platform) -> int | None:
    """Return the position of the offer that fits best, the first among equals; an offer of None fits any host last."""
    wanted = preference(host)
    ranked = [
        (len(wanted) if offer is None else wanted.index(offer), position)
        for position, offer in enumerate(offered)
        if offer is None or offer in wanted
    ]
    return min(ranked)[1] if ranked else None
