"""Stream sessions of the shim with a real runtime: exec, attach and port-forward by ticket and descriptor."""

import itertools
import os
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.proto import shim_pb2
from bulkhead.proto.containerd import task_pb2 as pb
from sandbox_svc.shim import uris
from support.shim_pod import Pod, Session, Zygote, answer_on, process, read_all, until

pytestmark = pytest.mark.root

numbers = itertools.count()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as running:
        yield running


@pytest.fixture(params=["runc", "crun"])
def pod(request: pytest.FixtureRequest, zygote: Zygote) -> Iterator[Pod]:
    made = Pod(zygote, f"pod{next(numbers)}", request.param).fork()
    yield made
    made.close()


def exec_ticket(*args: str, tty: bool = False) -> shim_pb2.ExecTicket:
    """Return a ticket for a command in container c with all streams."""
    return shim_pb2.ExecTicket(
        container_id="c", process=process(*args, tty=tty), stdin=True, stdout=True, stderr=not tty, tty=tty
    )


def redeemed(pod: Pod, token: str) -> dict[str, Any]:
    """Return the answer to a token."""
    session = Session(str(pod.directory / "stream"), token)
    session.close()
    return session.ok


def pids(pod: Pod) -> int:
    """Count the container's processes."""
    return len(pod.task("Pids", pb.PidsRequest(id="c"), pb.PidsResponse).processes)


def test_exec_with_pipes(pod: Pod) -> None:
    """The client has the pipes' ends; closing standard input ends cat; the exit follows the output."""
    pod.run("c", "sleep", "100")
    session = pod.session("exec", exec=exec_ticket("sh", "-c", "cat; echo bye >&2; exit 5"))
    assert session.ok == {"ok": {"kind": "exec", "tty": False, "stdin": True, "stdout": True, "stderr": True}}
    fds = session.begin()
    os.write(fds["stdin"], b"typed\n")
    os.close(fds["stdin"])

    assert session.receive() == {"exit": {"code": 5, "message": ""}}
    assert (read_all(fds["stdout"]), read_all(fds["stderr"])) == (b"typed\n", b"bye\n")
    session.close()


def test_exec_with_a_terminal(pod: Pod) -> None:
    """The client has the terminal itself, with the size it began with, and resizes it.

    crun tells the size of an exec'd terminal to nobody but us, so that the process may look before it is set.
    """
    pod.run("c", "sleep", "100")
    script = "until stty size | grep '25 81'; do sleep 0.05; done; read x; stty size; exit 6"
    session = pod.session("tty", exec=exec_ticket("sh", "-c", script, tty=True))
    fds = session.begin(width=81, height=25)
    seen = b""
    while b"25 81" not in seen:
        seen += os.read(fds["tty"], 1000)
    session.sock.send(b'{"resize": {"width": 132, "height": 43}}')
    until(lambda: termios.tcgetwinsize(fds["tty"]) == (43, 132))
    os.write(fds["tty"], b"go\n")
    assert session.receive() == {"exit": {"code": 6, "message": ""}}

    assert b"43 132" in read_all(fds["tty"])
    session.close()


def test_a_ticket_works_once(pod: Pod) -> None:
    """A used, an unknown and an expired token are refused alike."""
    pod.run("c", "sleep", "100")
    first = pod.session("once", exec=exec_ticket("true"))
    first.begin()
    for token in ("once".ljust(32, "-"), "never"):
        assert redeemed(pod, token)["error"]["code"] == 5
    brief = shim_pb2.AddTicketRequest(token="brief".ljust(32, "-"), ttl_ms=10, exec=exec_ticket("true"))
    pod.shim("AddTicket", brief, shim_pb2.AddTicketResponse)
    time.sleep(0.1)

    assert redeemed(pod, brief.token)["error"]["code"] == 5
    first.close()


def test_hanging_up_kills_the_group(pod: Pod) -> None:
    """A process that never looks at its pipes dies with its session, and its children in the group with it."""
    pod.run("c", "sleep", "100")
    session = pod.session("hang", exec=exec_ticket("sh", "-c", "sleep 1000 & sleep 1000"))
    fds = session.begin()
    until(lambda: pids(pod) >= 3)
    session.close()

    until(lambda: pids(pod) == 1)
    for fd in fds.values():
        os.close(fd)


def test_exec_of_nothing_fails_with_words(pod: Pod) -> None:
    """What the runtime says of a program that is not there reaches the client."""
    pod.run("c", "sleep", "100")
    session = pod.session("nothing", exec=exec_ticket("/nonesuch"))
    answer = session.ask({"begin": {}})

    assert "nonesuch" in answer["error"]["message"]
    session.close()


def test_attach_shares_the_streams(pod: Pod) -> None:
    """Two clients see the same output, the log has it too, and the exit is told to both."""
    pod.run("c", "sh", "-c", "read x; echo $x; echo problem >&2; read y; exit 3", stdin=uris.cri_stdin(once=False))
    ticket = shim_pb2.AttachTicket(container_id="c", stdin=True, stdout=True, stderr=True)
    sessions = [pod.session(name, attach=ticket) for name in ("one", "two")]
    one, two = (session.begin() for session in sessions)
    os.write(one["stdin"], b"hello\n")
    assert os.read(one["stdout"], 100) == os.read(two["stdout"], 100) == b"hello\n"
    assert os.read(two["stderr"], 100) == b"problem\n"
    os.close(one["stdin"])
    os.write(two["stdin"], b"end\n")

    assert [session.receive() for session in sessions] == [{"exit": {"code": 3, "message": ""}}] * 2
    assert ("stdout", "F", "hello") in pod.lines("c")
    for session in sessions:
        session.close()


def test_once_ends_standard_input_with_the_first_client(pod: Pod) -> None:
    """With stdin_once the container's cat ends when the client's standard input does."""
    pod.run("c", "cat", stdin=uris.cri_stdin(once=True))
    session = pod.session("once", attach=shim_pb2.AttachTicket(container_id="c", stdin=True, stdout=True))
    fds = session.begin()
    os.write(fds["stdin"], b"all\n")
    os.close(fds["stdin"])

    assert pod.wait("c") == 0
    assert read_all(fds["stdout"]) == b"all\n"
    session.close()


def test_attach_to_a_terminal(pod: Pod) -> None:
    """A container's terminal echoes, takes a size, and is logged."""
    pod.run("c", "sh", "-c", "read x; stty size; exit 2", tty=True, stdin=uris.cri_stdin(once=False))
    ticket = shim_pb2.AttachTicket(container_id="c", stdin=True, stdout=True, tty=True)
    session = pod.session("tty", attach=ticket)
    fds = session.begin(width=90, height=30)
    os.write(fds["stdin"], b"go\n")

    assert session.receive() == {"exit": {"code": 2, "message": ""}}
    assert b"30 90" in read_all(fds["stdout"])
    assert ("stdout", "F", "30 90\r") in pod.lines("c")
    session.close()


def test_a_slow_client_is_cut_and_holds_nobody_up(pod: Pod) -> None:
    """A client that does not read is cut off; the container and its log go on."""
    pod.run("c", "sh", "-c", "read x; seq 1000000; echo finished", stdin=uris.cri_stdin(once=False))
    session = pod.session("slow", attach=shim_pb2.AttachTicket(container_id="c", stdin=True, stdout=True))
    fds = session.begin()
    os.write(fds["stdin"], b"go\n")

    assert session.receive()["error"]["code"] == 8
    assert pod.wait("c") == 0
    assert pod.lines("c")[-1] == ("stdout", "F", "finished")
    session.close()
    for fd in fds.values():
        os.close(fd)


def serve(netns: Path | None, family: socket.AddressFamily, host: str) -> tuple[socket.socket, int]:
    """Listen on a loopback port, inside a network namespace, and greet once."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    made: list[socket.socket] = []

    def listen() -> None:
        if netns is not None:
            from sandbox_svc import linux

            fd = os.open(netns, os.O_RDONLY)
            linux.setns(fd, linux.CLONE_NEWNET)
            os.close(fd)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind((host, 0))
        sock.listen()
        made.append(sock)

    thread = threading.Thread(target=listen)  # setns is for the one thread, which ends here
    thread.start()
    thread.join()
    os.close(home)

    def greet() -> None:
        peer, _ = made[0].accept()
        with peer:
            peer.sendall(b"hello from the pod")

    threading.Thread(target=greet, daemon=True).start()
    return made[0], made[0].getsockname()[1]


@pytest.fixture
def netns() -> Iterator[Path]:
    name = f"bhshim-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=30)
    yield Path("/run/netns", name)
    subprocess.run(["ip", "netns", "del", name], check=True, timeout=30)


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_port_forward(zygote: Zygote, netns: Path, family: socket.AddressFamily, host: str) -> None:
    """Connections are made in the pod's network namespace, over IPv4 or IPv6, many in one session."""
    pod = Pod(zygote, f"forward-{family}", "runc").fork()
    listener, port = serve(netns, family, host)
    ticket = shim_pb2.PortForwardTicket(netns=str(netns), ports=[port, 1])
    session = pod.session("forward", port_forward=ticket)
    assert session.ok["ok"] == {"kind": "port_forward", "ports": [port, 1]}
    assert session.ask({"connect": {"id": 7, "port": port}}) == {"connected": {"id": 7}}
    assert answer_on(socket.socket(fileno=session.fds[0])) == b"hello from the pod"
    refused = session.ask({"connect": {"id": 8, "port": 1}})["failed"]
    other = session.ask({"connect": {"id": 9, "port": 2}})["failed"]

    assert (refused["id"], other["id"]) == (8, 9)
    assert "port 1 " in refused["message"]
    listener.close()
    session.close()
    pod.close()
