"""The events of the protocol: their methods, messages and bits, and how plugins of old hear of them."""

from typing import NamedTuple

from google.protobuf.message import Message

from bulkhead.proto.containerd import nri_pb2 as nri
from bulkhead.proto.containerd.nri_pb2 import Event

#: Every event there is, as a mask.
ALL_EVENTS = (1 << (Event.LAST - 1)) - 1


class Kind(NamedTuple):
    """One event: the plugin's method of it, its answer, and whether StateChange was its method before v0.10."""

    method: str
    response: type[Message]
    was_state_change: bool = False


KINDS: dict[int, Kind] = {
    Event.RUN_POD_SANDBOX: Kind("RunPodSandbox", nri.RunPodSandboxResponse, True),
    Event.UPDATE_POD_SANDBOX: Kind("UpdatePodSandbox", nri.UpdatePodSandboxResponse),
    Event.POST_UPDATE_POD_SANDBOX: Kind("PostUpdatePodSandbox", nri.PostUpdatePodSandboxResponse, True),
    Event.STOP_POD_SANDBOX: Kind("StopPodSandbox", nri.StopPodSandboxResponse, True),
    Event.REMOVE_POD_SANDBOX: Kind("RemovePodSandbox", nri.RemovePodSandboxResponse, True),
    Event.CREATE_CONTAINER: Kind("CreateContainer", nri.CreateContainerResponse),
    Event.POST_CREATE_CONTAINER: Kind("PostCreateContainer", nri.PostCreateContainerResponse, True),
    Event.START_CONTAINER: Kind("StartContainer", nri.StartContainerResponse, True),
    Event.POST_START_CONTAINER: Kind("PostStartContainer", nri.PostStartContainerResponse, True),
    Event.UPDATE_CONTAINER: Kind("UpdateContainer", nri.UpdateContainerResponse),
    Event.POST_UPDATE_CONTAINER: Kind("PostUpdateContainer", nri.PostUpdateContainerResponse, True),
    Event.STOP_CONTAINER: Kind("StopContainer", nri.StopContainerResponse),
    Event.REMOVE_CONTAINER: Kind("RemoveContainer", nri.RemoveContainerResponse, True),
    Event.VALIDATE_CONTAINER_ADJUSTMENT: Kind("ValidateContainerAdjustment", nri.ValidateContainerAdjustmentResponse),
}


def bit(event: int) -> int:
    """Return an event's bit in a plugin's mask."""
    return 1 << (event - 1)
