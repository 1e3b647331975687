"""The default validator: what no plugin may change, and which plugins must have had their say (pure).

The rules and annotations are those of github.com/containerd/nri, plugins/default-validator; a required plugin counts
here for pods and for every request that can still be refused, not for the creation of containers alone.
"""

from collections.abc import Iterable

from bulkhead.config.model import NriValidator
from bulkhead.errors import FailedPrecondition
from bulkhead.proto.containerd.nri_pb2 import ContainerAdjustment, Field, PodSandbox, SecurityProfile
from sandbox_svc.nri.owners import Owners

REQUIRED_ANNOTATION = "required-plugins.noderesource.dev"
#: Characters of its list. It is read at every request while all plugins wait, and whoever may make a pod writes it.
_LIST_LIMIT = 8192

# Go's strconv.ParseBool.
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


def annotation(pod: PodSandbox, key: str, container: str) -> str | None:
    """Return a pod's annotation as it holds for one of its containers: <key>/container.<name>, <key>/pod, <key>."""
    for name in (f"{key}/container.{container}", f"{key}/pod", key):
        if name in pod.annotations:
            return pod.annotations[name]
    return None


def required_plugins(config: NriValidator, pod: PodSandbox, container: str | None) -> list[str]:
    """Return the plugins ("name" or "NN-name") that must handle a request about a pod or one of its containers.

    The pod as a whole (container None) does without if it tolerates that, or if one of its containers does: they are
    asked about one by one. FailedPrecondition if an annotation cannot be read; nothing is required then by mistake.
    """
    if not config.enable:
        return []
    if config.tolerate_missing_plugins_annotation and _tolerates(
        config.tolerate_missing_plugins_annotation, pod, container
    ):
        return []
    required = list(config.required_plugins)
    value = annotation(pod, REQUIRED_ANNOTATION, container or "")
    if value is not None:
        required += _names(value)
    return required


def missing(required: Iterable[str], present: Iterable[tuple[str, str]]) -> list[str]:
    """Return which of the required plugins are not among those present, given as (index, name)."""
    known = {name for index, base in present for name in (base, f"{index}-{base}")}
    return [name for name in required if name not in known]


def check(
    config: NriValidator, adjust: ContainerAdjustment, owners: Owners, id: str, profile: SecurityProfile | None
) -> None:
    """Refuse what is not allowed with FailedPrecondition; `profile` is the container's seccomp profile as asked for."""
    if config.reject_oci_hook_adjustment and (owner := owners.owner(id, Field.OciHooks)) is not None:
        raise _refusal(owner, "OCI hooks", "reject_oci_hook_adjustment")
    if (owner := owners.owner(id, Field.SeccompPolicy)) is not None:
        option = _seccomp_option(profile)
        if getattr(config, option):
            raise _refusal(owner, "the seccomp policy", option)
    if config.reject_namespace_adjustment and (entries := owners.entries(id, Field.Namespace)):
        what = "namespaces " + ", ".join(sorted(entries))
        raise _refusal(",".join(sorted(set(entries.values()))), what, "reject_namespace_adjustment")
    if config.reject_sysctl_adjustment:
        claimed = {key: owner for key in adjust.linux.sysctl if (owner := owners.owner(id, Field.Sysctl, key))}
        if claimed:
            what = "sysctls " + ", ".join(sorted(claimed))
            raise _refusal(",".join(sorted(set(claimed.values()))), what, "reject_sysctl_adjustment")


def _refusal(owner: str, what: str, option: str) -> FailedPrecondition:
    return FailedPrecondition(f"NRI plugin {owner} adjusted {what}, which default_validator.{option} forbids")


def _seccomp_option(profile: SecurityProfile | None) -> str:
    if profile is None or profile.profile_type == SecurityProfile.UNCONFINED:
        return "reject_unconfined_seccomp_adjustment"
    if profile.profile_type == SecurityProfile.RUNTIME_DEFAULT:
        return "reject_runtime_default_seccomp_adjustment"
    return "reject_custom_seccomp_adjustment"


def _tolerates(key: str, pod: PodSandbox, container: str | None) -> bool:
    value = annotation(pod, key, container or "")
    values = [] if value is None else [value]
    if container is None:
        values += [value for name, value in pod.annotations.items() if name.startswith(f"{key}/container.")]
    for value in values:
        if value not in _TRUE | _FALSE:
            raise FailedPrecondition(f'annotation {key} of the pod is "{value[:80]}", expected "true" or "false"')
    return any(value in _TRUE for value in values)


def _names(value: str) -> list[str]:
    """Read a YAML list of names; a parser is loaded only for pods that have the annotation."""
    from sandbox_svc import yaml_reader

    try:
        if len(value) > _LIST_LIMIT:
            raise ValueError(f"{len(value)} characters, at most {_LIST_LIMIT}")
        document = yaml_reader.parse(value.encode())
        return [] if document.null else document.texts()
    except ValueError as error:
        raise FailedPrecondition(
            f'annotation {REQUIRED_ANNOTATION} of the pod is "{value[:80]}", expected a YAML list of names: {error}'
        ) from error
