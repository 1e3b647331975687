"""Annotations of a spec: containerd's io.kubernetes.cri.* set, which gVisor and Kata read, and those passed through."""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.model import ContainerInput, Json, SandboxInput

_PREFIX = "io.kubernetes.cri."


def apply_to_sandbox(spec: Json, request: SandboxInput) -> None:
    """Annotate a pause container; the CRI set wins over what the pod passes through."""
    config = request.config
    found = spec["annotations"]
    if config.linux.HasField("resources"):
        resources = config.linux.resources
        found[_PREFIX + "sandbox-cpu-period"] = str(resources.cpu_period)
        found[_PREFIX + "sandbox-cpu-quota"] = str(resources.cpu_quota)
        found[_PREFIX + "sandbox-cpu-shares"] = str(resources.cpu_shares)
        found[_PREFIX + "sandbox-memory"] = str(resources.memory_limit_in_bytes)
    found.update(passed_through(config.annotations, request.handler.pod_annotations))
    found.update(_pod(request.id, config.metadata))
    found[_PREFIX + "container-type"] = "sandbox"
    found[_PREFIX + "sandbox-log-directory"] = config.log_directory
    found[_PREFIX + "podsandbox.image-name"] = request.image_name


def apply_to_container(spec: Json, request: ContainerInput) -> None:
    """Annotate a container; image labels never become annotations (CVE-2026-53488)."""
    found = spec["annotations"]
    found.update(passed_through(request.sandbox_config.annotations, request.handler.pod_annotations))
    found.update(passed_through(request.config.annotations, request.handler.container_annotations))
    found.update(_pod(request.sandbox_id, request.sandbox_config.metadata))
    found[_PREFIX + "container-type"] = "container"
    found[_PREFIX + "container-name"] = request.config.metadata.name
    found[_PREFIX + "image-name"] = request.config.image.user_specified_image or request.image_name


def passed_through(annotations: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Return the annotations whose key matches one of the patterns (Go's path.Match)."""
    compiled = [pattern for pattern in map(_pattern, patterns) if pattern]
    return {key: value for key, value in annotations.items() if any(p.fullmatch(key) for p in compiled)}


def _pod(sandbox_id: str, metadata: cri.PodSandboxMetadata) -> dict[str, str]:
    return {
        _PREFIX + "sandbox-id": sandbox_id,
        _PREFIX + "sandbox-namespace": metadata.namespace,
        _PREFIX + "sandbox-uid": metadata.uid,
        _PREFIX + "sandbox-name": metadata.name,
    }


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str] | None:
    r"""Translate a path.Match pattern: `*` and `?` stop at `/`, `[^a-z]` negates, `\` quotes; None when malformed."""
    out: list[str] = []
    rest = pattern
    while rest:
        char, rest = rest[0], rest[1:]
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "\\":
            if not rest:
                return None
            out.append(re.escape(rest[0]))
            rest = rest[1:]
        elif char == "[":
            found = re.match(r"(\^?)((?:\\.|[^\]\\])+)\]", rest, re.DOTALL)
            if not found:
                return None
            out.append(f"[{found[1]}{_class(found[2])}]")
            rest = rest[found.end() :]
        else:
            out.append(re.escape(char))
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        return None


def _class(body: str) -> str:
    """Quote a character class's members, keeping ranges and what was quoted already."""
    return re.sub(r"\\.|[\[\]^&~|]", lambda found: found[0] if found[0].startswith("\\") else "\\" + found[0], body)
