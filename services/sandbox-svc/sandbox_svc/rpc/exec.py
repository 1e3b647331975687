"""ExecSync, Exec, Attach, PortForward and ReopenContainerLog: everything asked of a running container's shim."""

import json
import logging
import os
from pathlib import Path

import grpc

from bulkhead import metrics
from bulkhead.errors import DeadlineExceeded, FailedPrecondition
from bulkhead.proto import shim_pb2
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.rpc import MESSAGE_LIMIT
from sandbox_svc import bundle, validate
from sandbox_svc.node import Node
from sandbox_svc.oci.spec import exec_process
from sandbox_svc.rpc.statuses import SETTLE
from sandbox_svc.store.entities import Container
from sandbox_svc.task.link import Link

logger = logging.getLogger(__name__)

#: Bytes of both streams together: the answer must fit the kubelet's message limit with room for its frame.
OUTPUT_LIMIT = MESSAGE_LIMIT - 64 * 1024
#: Seconds an ExecSync without a time limit of its own may take: for ever is what leaks.
LONGEST = 24 * 3600.0
#: Seconds for the runtime's exec and for the shim's answer, beside the command's own time.
OVERHEAD = 30.0


def exec_sync(node: Node, request: cri.ExecSyncRequest, context: grpc.ServicerContext) -> cri.ExecSyncResponse:
    """Run a command to its end and return its output, cut at OUTPUT_LIMIT; DeadlineExceeded if it takes too long."""
    validate.command(request.cmd)
    validate.grace(request.timeout)
    container, link = running(node, request.container_id)
    drain = node.config.runtime.drain_exec_sync_io_timeout
    limit = float(request.timeout) or LONGEST
    left = context.time_remaining()
    if left is not None:
        limit = min(limit, max(left, 0.001))
    call = shim_pb2.ExecSyncRequest(
        container_id=container.id,
        process=_process(node, container, list(request.cmd), tty=False),
        timeout_ms=int(limit * 1000),
        output_limit=OUTPUT_LIMIT,
        drain_ms=int(drain * 1000),
    )
    # No runtime starts a process in a frozen container, and a probe must not fail because of a checkpoint.
    node.checkpoints.wait_thawed(container.id, limit)
    with metrics.stage("exec_sync"):
        answer, fds = link.exec_sync(call, limit + drain + OVERHEAD)
    try:
        out, err = _output(answer, fds)
    finally:
        for fd in fds:
            os.close(fd)
    if answer.timed_out:
        raise DeadlineExceeded(f"{request.cmd[0]!r} in container {container.id} was killed after {limit:g} s")
    if answer.truncated:
        logger.warning("container %s: output of %r cut at %d bytes", container.id, request.cmd[0], OUTPUT_LIMIT)
    return cri.ExecSyncResponse(stdout=out, stderr=err, exit_code=answer.exit_code)


def exec_stream(node: Node, request: cri.ExecRequest, context: grpc.ServicerContext) -> cri.ExecResponse:
    """Return the URL of a session that runs a command."""
    validate.command(request.cmd)
    validate.streaming(tty=request.tty, stderr=request.stderr, some=request.stdin or request.stdout or request.stderr)
    container, link = running(node, request.container_id)
    ticket = shim_pb2.AddTicketRequest()
    ticket.exec.container_id = container.id
    ticket.exec.process = _process(node, container, list(request.cmd), tty=request.tty)
    ticket.exec.stdin, ticket.exec.stdout, ticket.exec.stderr = request.stdin, request.stdout, request.stderr
    ticket.exec.tty = request.tty
    return cri.ExecResponse(url=node.streams.url("exec", link, ticket))


def attach(node: Node, request: cri.AttachRequest, context: grpc.ServicerContext) -> cri.AttachResponse:
    """Return the URL of a session onto the container's own stdio."""
    validate.streaming(tty=request.tty, stderr=request.stderr, some=request.stdin or request.stdout or request.stderr)
    container, link = running(node, request.container_id)
    ticket = shim_pb2.AddTicketRequest()
    ticket.attach.container_id = container.id
    ticket.attach.stdin, ticket.attach.stdout, ticket.attach.stderr = request.stdin, request.stdout, request.stderr
    # What the container has decides, whatever the client believes: its output is one stream or two.
    ticket.attach.tty = container.record.config.tty
    return cri.AttachResponse(url=node.streams.url("attach", link, ticket))


def port_forward(node: Node, request: cri.PortForwardRequest, context: grpc.ServicerContext) -> cri.PortForwardResponse:
    """Return the URL of a session to ports of the pod; no ports in the request: the client names them later."""
    validate.ports(request.port)
    pod = node.model.pod(request.pod_sandbox_id)
    if pod.state != cri.SANDBOX_READY or pod.link is None:
        raise FailedPrecondition(f"pod sandbox {pod.id} is not ready")
    ticket = shim_pb2.AddTicketRequest()
    ticket.port_forward.netns = pod.record.netns
    ticket.port_forward.ports.extend(request.port)
    return cri.PortForwardResponse(url=node.streams.url("portforward", pod.link, ticket))


def reopen_container_log(
    node: Node, request: cri.ReopenContainerLogRequest, context: grpc.ServicerContext
) -> cri.ReopenContainerLogResponse:
    """Have the log opened anew after its rotation; an exited container's is not, so that no new file is made."""
    container, link = running(node, request.container_id)
    if container.record.log_path and not Path(container.record.log_path).parent.is_dir():
        raise FailedPrecondition(f"{Path(container.record.log_path).parent} does not exist")
    link.ours_call("ReopenLog", shim_pb2.ReopenLogRequest(container_id=container.id), shim_pb2.ReopenLogResponse)
    return cri.ReopenContainerLogResponse()


def running(node: Node, ident: str) -> tuple[Container, Link]:
    """Return a container that runs and its shim; FailedPrecondition if it does not."""
    container = node.model.container(ident)
    container.pod.settled.wait(SETTLE)
    if container.state != cri.CONTAINER_RUNNING:
        name = cri.ContainerState.Name(container.state)
        raise FailedPrecondition(f"container {container.id} is in state {name}, expected CONTAINER_RUNNING")
    if container.pod.link is None:
        raise FailedPrecondition(f"the shim of pod {container.pod.id} is gone")
    return container, container.pod.link


def _process(node: Node, container: Container, cmd: list[str], *, tty: bool) -> bytes:
    spec = bundle.read(node.bundle(container.id))
    return json.dumps(exec_process(spec, cmd, tty), separators=(",", ":")).encode()


def _output(answer: shim_pb2.ExecSyncResponse, fds: list[int]) -> tuple[bytes, bytes]:
    """Return both streams: from the answer itself, or from its memory file (stdout first, then stderr)."""
    if not fds:
        return answer.stdout, answer.stderr
    out = os.pread(fds[0], answer.stdout_length, 0)
    return out, os.pread(fds[0], answer.stderr_length, answer.stdout_length)
