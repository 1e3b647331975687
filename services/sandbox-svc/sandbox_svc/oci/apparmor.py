"""The AppArmor profile of a process."""

from bulkhead.errors import FailedPrecondition, InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci import profiles
from sandbox_svc.oci.model import ContainerInput, Json

#: containerd's name: a profile that an administrator or a neighbouring containerd loaded under it is used as it is.
DEFAULT_PROFILE = "cri-containerd.apparmor.d"

_FIELD = "linux.security_context.apparmor"


def apply(spec: Json, request: ContainerInput) -> None:
    """Set the profile that the request asks for; without one, the default where the kernel has AppArmor.

    The default profile must have been loaded (a privileged container runs without). Asking for AppArmor where there is
    none fails rather than running unconfined.
    """
    context = request.config.linux.security_context
    wanted = _wanted(context)
    if not request.facts.apparmor or request.runtime.disable_apparmor:
        if wanted is not None and wanted.profile_type != profiles.UNCONFINED:
            raise FailedPrecondition(f"{_FIELD}: AppArmor is not enabled on this node or by its configuration")
        return
    profile = wanted or cri.SecurityProfile(profile_type=profiles.RUNTIME_DEFAULT)
    profiles.check(profile, _FIELD)
    if profile.profile_type == profiles.LOCALHOST:
        name = profiles.localhost_name(profile)
        if not request.facts.host.apparmor_profile_loaded(name):
            raise InvalidArgument(f"{_FIELD}.localhost_ref: profile {name!r} is not loaded on this node")
        spec["process"]["apparmorProfile"] = name
    elif profile.profile_type == profiles.RUNTIME_DEFAULT and not context.privileged:
        spec["process"]["apparmorProfile"] = DEFAULT_PROFILE


def _wanted(context: cri.LinuxContainerSecurityContext) -> cri.SecurityProfile | None:
    if context.HasField("apparmor"):
        return context.apparmor
    if context.apparmor_profile:
        return profiles.from_string(context.apparmor_profile, "linux.security_context.apparmor_profile")
    return None
