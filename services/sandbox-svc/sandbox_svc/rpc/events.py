"""GetContainerEvents: every creation, start, stop and removal, as it happens."""

from collections.abc import Iterator

import grpc

from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.happenings import Watcher
from sandbox_svc.node import Node


def get_container_events(
    node: Node, request: cri.GetEventsRequest, context: grpc.ServicerContext
) -> Iterator[cri.ContainerEventResponse]:
    """Yield events until the client goes away; each stream holds a thread meanwhile."""
    watcher = Watcher(node.happenings)
    if not context.add_callback(watcher.close):
        return
    for event in node.happenings.watch(watcher):
        yield event.message()
