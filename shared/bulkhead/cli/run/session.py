"""One run from beginning to end: key, image, pod, container, output, and what is left of it."""

import argparse
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from bulkhead import config, paths
from bulkhead.cli import keys
from bulkhead.cli.images.client import Client
from bulkhead.cli.run import terminal
from bulkhead.cli.run.interrupts import Interrupted, Interrupts
from bulkhead.cli.run.log import Follower
from bulkhead.cli.run.runtime import Runtime
from bulkhead.config.model import Config
from bulkhead.errors import AlreadyExists, BulkheadError, InvalidArgument
from bulkhead.proto import images_pb2 as pb
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from bulkhead.supervisor import claims

#: What docker and podman answer with when a container could not be run.
NOT_RUN = 125
#: By which sandbox-svc knows the keys that are lent to a container.
KEY_GRANT = "io.bulkhead.key-grant"
#: Tells our pods from the kubelet's.
LABEL = "io.bulkhead.run"


def run(options: argparse.Namespace) -> int:
    """Return the container's exit status; 125, after one line, if it could not be run; 128 and a signal's number."""
    try:
        with Interrupts() as interrupts:
            return Session(options, config.load(options.config), interrupts).run()
    except Interrupted as interrupted:
        return interrupted.status
    except BulkheadError as error:
        sys.stderr.write(f"bulkhead: {keys.error_of(error)}\n")
        return NOT_RUN


class Session:
    """One run."""

    def __init__(self, options: argparse.Namespace, loaded: Config, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._options = options
        self._config = loaded
        self._runtime = Runtime(claims.address(loaded))
        self._uid = str(uuid.uuid4())
        self._logs = loaded.root / "run" / self._uid
        self._environment = _pairs(options.env, "--env")
        self._labels = _pairs(options.label, "--label")
        if options.tty and not sys.stdin.isatty():
            raise InvalidArgument("--tty: standard input is no terminal")

    def run(self) -> int:
        """Run the container and return its exit status."""
        with ExitStack() as held:
            grant = ""
            if self._options.key:
                grant = held.enter_context(keys.lent(paths.layer_socket(self._config.state), self._options.key))
            with self._interrupts.allowed():
                self._have_image(grant)
                self._refuse_taken()
            held.enter_context(self._log_directory())
            sandbox = self._sandbox()
            pod = self._runtime.run_pod(sandbox, self._options.handler)
            held.callback(self._clean, pod)
            container = self._runtime.create(pod, self._container(grant), sandbox)
            return self._attend(container)

    def _attend(self, container: str) -> int:
        """Start the container, show what it writes, and return its exit status."""
        try:
            with self._interrupts.allowed():
                return self._follow(container)
        except Interrupted:
            self._runtime.stop(container, self._options.stop_timeout)
            raise

    def _follow(self, container: str) -> int:
        options = self._options
        self._runtime.start(container)
        follower = Follower(self._logs / "0.log")
        if options.tty and terminal.attach(self._runtime, container):
            return self._runtime.wait(container, lambda: False)
        with terminal.fed(self._runtime, container) if options.interactive and not options.tty else ExitStack():
            return self._runtime.wait(container, follower.show)

    def _have_image(self, grant: str) -> None:
        """Have the image unpacked, which needs the keys of an encrypted one; NotFound if it is not here at all."""
        if self._runtime.has_image(self._options.image):
            return
        options = self._options
        request = pb.UnpackRequest(
            image=options.image,
            grant=grant,
            pod=f"{options.namespace}/{options.name}",
            namespace=options.namespace,
            pod_labels=self._labels,
        )
        client = Client(paths.service_socket(self._config.state, "image-svc"))
        try:
            for _ in client.stream(client.stub.Unpack, request):
                pass
        finally:
            client.close()

    def _refuse_taken(self) -> None:
        for pod in self._runtime.pods({LABEL: self._options.name}):
            raise AlreadyExists(f"{self._options.name!r} is the name of a run that is there ({pod[:13]}); remove it")

    def _sandbox(self) -> cri.PodSandboxConfig:
        options = self._options
        made = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=options.name, uid=self._uid, namespace=options.namespace),
            hostname="" if options.net_host else options.name[:63],
            log_directory=str(self._logs),
            labels={**self._labels, LABEL: options.name},
        )
        network = cri.NODE if options.net_host else cri.POD
        made.linux.security_context.namespace_options.network = network
        return made

    def _container(self, grant: str) -> cri.ContainerConfig:
        options = self._options
        words: Sequence[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
        made = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=options.name),
            image=cri.ImageSpec(image=options.image, user_specified_image=options.image),
            command=[options.entrypoint] if options.entrypoint else [],
            args=words,
            working_dir=options.workdir,
            envs=[cri.KeyValue(key=name, value=value.encode()) for name, value in self._environment.items()],
            log_path="0.log",
            stdin=options.tty or options.interactive,
            stdin_once=options.tty or options.interactive,
            tty=options.tty,
        )
        made.linux.security_context.namespace_options.CopyFrom(self._sandbox().linux.security_context.namespace_options)
        if options.tty:
            made.envs.add(key="TERM", value=os.environ.get("TERM", "xterm").encode())
        if grant:
            made.annotations[KEY_GRANT] = grant
        return made

    @contextmanager
    def _log_directory(self) -> Iterator[None]:
        """Have a directory for what the container writes; with --rm it goes at the end."""
        self._logs.mkdir(parents=True, mode=0o700)
        try:
            yield
        finally:
            if self._options.rm:
                shutil.rmtree(self._logs, ignore_errors=True)
            with suppress(OSError):  # what is not empty stays
                self._logs.rmdir()
            with suppress(OSError):
                self._logs.parent.rmdir()

    def _clean(self, pod: str) -> None:
        """Stop the pod, and with --rm remove it with its container."""
        self._runtime.stop_pod(pod)
        if self._options.rm:
            self._runtime.remove_pod(pod)


def _pairs(texts: Sequence[str], option: str) -> Mapping[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidArgument(f"{option} {text!r}: expected NAME=VALUE")
        found[name] = value
    return found
