"""Passwords from a credential provider: a real program, run by image-svc's user, for a registry that wants one."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bulkhead.proto import images_pb2, images_pb2_grpc
from support.image_service import USER, Service, service
from support.images import Image, Layer, Pusher
from support.registry import registry as run_registry
from support.token_server import TokenServer, token_server

pytestmark = pytest.mark.root

PASSWORD = "secret-word"
#: Notes who runs it with which request, then does what `answer` beside it says.
PROGRAM = r"""#!/bin/sh
where=$(dirname "$0")/..
printf '{"request": %s, "args": "%s", "region": "%s", "uid": %s}\n' \
    "$(cat)" "$*" "$REGION" "$(id -u)" >> "$where/calls/log"
. "$where/answer"
"""
CONFIG = """# As the kubelet has it.
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: test-provider
    matchImages:
      - "127.0.*.1:{port}/team"
    defaultCacheDuration: "10m"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get, --quick]
    env:
      - name: REGION
        value: here
"""


class Provider:
    """A provider's directory: program, configuration, calls."""

    def __init__(self, directory: Path, port: str) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.config = directory / "providers.yaml"
        self.bin.mkdir()
        (directory / "calls").mkdir()
        (directory / "calls").chmod(0o777)
        (self.bin / "test-provider").write_text(PROGRAM)
        (self.bin / "test-provider").chmod(0o755)
        self.config.write_text(CONFIG.format(port=port))
        auth = {f"*.*.*.*:{port}": {"username": "tester", "password": PASSWORD}}
        version = "credentialprovider.kubelet.k8s.io/v1"
        answer = {"apiVersion": version, "kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "auth": auth}
        self.say(f"cat <<'END'\n{json.dumps(answer)}\nEND")

    def say(self, answer: str) -> None:
        """Have the program end like that from now on."""
        (self.directory / "answer").write_text(f"{answer}\n")

    @property
    def calls(self) -> list[dict[str, object]]:
        """How it was called."""
        log = self.directory / "calls" / "log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def private(own_network: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a registry with a token service that wants a password, holding team/app:1 and team/app:2."""
    directory = tmp_path_factory.mktemp("private")
    server = TokenServer("tester", PASSWORD)
    with token_server(server, directory) as settings, run_registry(directory / "data", auth=settings) as address:
        for tag in "12":
            scope = "repository:team/app:pull,push"
            image = Image([Layer().file("a", tag).tar()])
            Pusher(address, f"Bearer {server.token(scope)}").image("team/app", tag, image)
        yield address


@pytest.fixture
def provider(private: str) -> Iterator[Provider]:
    """Set up a provider for that registry."""
    directory = Path(tempfile.mkdtemp(prefix="bhprov"))
    directory.chmod(0o755)
    yield Provider(directory, private.rpartition(":")[2])
    shutil.rmtree(directory)


@pytest.fixture
def node(provider: Provider) -> Iterator[Service]:
    """Run image-svc with that provider."""
    directory = Path(tempfile.mkdtemp(prefix="bhimg"))
    own = f'image_credential_provider_config = "{provider.config}"\n'
    own += f'image_credential_provider_bin_dir = "{provider.bin}"'
    with service(directory, own=own) as made:
        yield made
    shutil.rmtree(directory)


def failure(node: Service, name: str) -> str:
    """Return the words of a pull that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        node.pull(name)
    assert PASSWORD not in str(caught.value)
    return caught.value.details() or ""


def test_password_from_a_program(node: Service, provider: Provider, private: str) -> None:
    """The program is asked once, by a user without rights, and what it says opens the registry; no log holds it."""
    node.pull(f"{private}/team/app:1")
    node.pull(f"{private}/team/app:2")

    (call,) = provider.calls
    assert call == {
        "request": {
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderRequest",
            "image": f"{private}/team/app",
        },
        "args": "get --quick",
        "region": "here",
        "uid": USER.pw_uid,
    }
    assert PASSWORD not in node.log


def test_failing_program_is_named(node: Service, provider: Provider, private: str) -> None:
    """A registry that refuses for want of a password says why there was none; a wrong file fails by its line."""
    provider.say(f"echo {PASSWORD}; echo no role attached >&2; exit 4")
    text = failure(node, f"{private}/team/app:1")
    assert "401" in text
    assert "credential provider test-provider: exit status 4: no role attached" in text

    (provider.bin / "test-provider").unlink()
    assert "test-provider: No such file" in failure(node, f"{private}/team/app:1")
    provider.config.write_text("kind: [\n")
    assert f"{provider.config}:2: " in failure(node, f"{private}/team/app:1")
    assert PASSWORD not in node.log


def test_explained(node: Service, provider: Provider, private: str) -> None:
    """Asked for reasons, image-svc names host, rule and where the password comes from, and keeps it to itself."""
    stub = images_pb2_grpc.ManagementStub(node.channel)
    request = images_pb2.ExplainRequest(image=f"{private}/team/app:1", offline=True)
    planned = stub.Explain(request, timeout=30, wait_for_ready=True)
    found = stub.Explain(images_pb2.ExplainRequest(image=request.image), timeout=60)

    (plan,), (host,) = planned.hosts, found.hosts
    assert plan.credentials == host.credentials == "credential provider test-provider"
    assert plan.source == "no host configuration: the registry itself"
    assert (plan.result, host.result) == ("", f"has {found.digest}")
    assert host.usable
    assert PASSWORD not in str(found) + str(planned)
    assert len(provider.calls) == 1
