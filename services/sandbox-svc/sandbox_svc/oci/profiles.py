"""Security profiles as the CRI names them: a message since 1.22, a string before."""

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri

RUNTIME_DEFAULT = cri.SecurityProfile.RuntimeDefault
UNCONFINED = cri.SecurityProfile.Unconfined
LOCALHOST = cri.SecurityProfile.Localhost

_PREFIX = "localhost/"


def from_string(text: str, field: str) -> cri.SecurityProfile:
    """Return the profile of `runtime/default`, `docker/default`, `unconfined` or `localhost/<name>`."""
    if text in ("runtime/default", "docker/default", ""):
        return cri.SecurityProfile(profile_type=RUNTIME_DEFAULT)
    if text == "unconfined":
        return cri.SecurityProfile(profile_type=UNCONFINED)
    if text.startswith(_PREFIX):
        return cri.SecurityProfile(profile_type=LOCALHOST, localhost_ref=text)
    raise InvalidArgument(f"{field}: want runtime/default, unconfined or localhost/<name>, got {text!r}")


def check(profile: cri.SecurityProfile, field: str) -> None:
    """Refuse a localhost_ref where the type is not Localhost, and a Localhost without one."""
    if (profile.profile_type == LOCALHOST) != bool(profile.localhost_ref):
        raise InvalidArgument(f"{field}.localhost_ref: belongs to profile_type Localhost, and only there")


def localhost_name(profile: cri.SecurityProfile) -> str:
    """Return the name of a Localhost profile, without the prefix that old callers leave in."""
    return str(profile.localhost_ref).removeprefix(_PREFIX)
