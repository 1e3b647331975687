"""Management.Explain: every host that would be asked for an image, in order, and why."""

import grpc

from bulkhead import rpc
from bulkhead.errors import InvalidArgument
from bulkhead.proto import images_pb2 as pb
from image_svc.parts import Parts
from image_svc.patience import Patience
from image_svc.registry.explain import Explanation

#: Seconds for all hosts together.
TIMEOUT = 120.0


def explain(parts: Parts, request: pb.ExplainRequest, context: grpc.ServicerContext) -> pb.ExplainResponse:
    """Answer the call; the hosts are asked until the caller hangs up."""
    if not request.image:
        raise InvalidArgument("image is empty; expected a name")
    patience = Patience(rpc.remaining(context, TIMEOUT), f"explanation of {request.image}")
    if not context.add_callback(patience.cancel):
        patience.cancel()
    auth = request.auth if request.HasField("auth") else None
    found = parts.registries.explain(request.image, patience, auth, offline=request.offline, push=request.push)
    return response(found)


def response(found: Explanation) -> pb.ExplainResponse:
    """Return an explanation as a message."""
    return pb.ExplainResponse(
        reference=found.reference,
        hosts=[
            pb.ExplainedHost(
                url=step.url,
                capabilities=step.capabilities,
                source=step.source,
                credentials=step.credentials,
                tls=step.tls,
                headers=step.headers,
                result=step.result,
                usable=step.usable,
                seconds=step.seconds,
            )
            for step in found.steps
        ],
        digest=found.digest,
        media_type=found.media_type,
        error=str(found.error or ""),
        code=found.error.code if found.error else 0,
        notes=found.notes,
    )
