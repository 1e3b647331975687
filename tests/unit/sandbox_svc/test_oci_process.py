"""Arguments, environment, directory and terminal of a process."""

import pytest

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.oci.process import merged_environment
from sandbox_svc.oci.spec import container_spec, exec_process, sandbox_spec
from support.specs import container_input, sandbox_input

IMAGE = {"Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["FROM=image", "PATH=/image"], "WorkingDir": "/image"}


@pytest.mark.parametrize(
    ("command", "args", "image", "expected"),
    [
        ([], [], IMAGE, ["/entry", "a", "b"]),
        ([], ["x"], IMAGE, ["/entry", "x"]),
        (["/c"], [], IMAGE, ["/c"]),
        (["/c"], ["x"], IMAGE, ["/c", "x"]),
        ([], [], {"Entrypoint": [""], "Cmd": ["a"]}, ["a"]),
        ([], [], {"Entrypoint": None, "Cmd": ["a"]}, ["a"]),
    ],
)
def test_command_and_arguments(
    command: list[str], args: list[str], image: dict[str, object], expected: list[str]
) -> None:
    """A command replaces Entrypoint and Cmd, arguments replace Cmd alone."""
    config = cri.ContainerConfig(command=command, args=args)
    spec = container_spec(container_input(config=config, image_config={"config": image}))
    assert spec["process"]["args"] == expected


def test_nothing_to_run_is_refused() -> None:
    """A container without a command in request and image is refused; so is a pause image without one."""
    with pytest.raises(InvalidArgument, match="command"):
        container_spec(container_input(config=cri.ContainerConfig()))
    with pytest.raises(InvalidArgument, match="neither Entrypoint nor Cmd"):
        sandbox_spec(sandbox_input(image_config={}))


@pytest.mark.parametrize(
    ("config", "member"),
    [
        ([], None),
        ("x", "config"),
        ({"Env": "A=1"}, "Env"),
        ({"Env": [1]}, "Env"),
        ({"Cmd": {"a": 1}}, "Cmd"),
        ({"Entrypoint": ["\ud800"]}, "Entrypoint"),
        ({"Entrypoint": ["a\0"]}, "Entrypoint"),
        ({"User": 0.5}, "User"),
        ({"Volumes": ["/a"]}, "Volumes"),
        ({"WorkingDir": ["/"]}, "WorkingDir"),
    ],
)
def test_images_are_not_believed(config: object, member: str | None) -> None:
    """A member of the wrong type in an image's configuration is named, whatever it is."""
    request = container_input(image_config={"config": config})
    if member is None:
        container_spec(request)
    else:
        with pytest.raises(InvalidArgument, match=f"the image's {member}"):
            container_spec(request)


def test_environment_in_layers() -> None:
    """The request's variables win over the image's, those over HOSTNAME and PATH; each stands once."""
    config = cri.ContainerConfig(command=["true"])
    config.envs.add(key="FROM", value=b"request")
    config.envs.add(key="HOSTNAME", value=b"mine")
    spec = container_spec(container_input(config=config, image_config={"config": IMAGE}))
    assert spec["process"]["env"] == ["PATH=/image", "HOSTNAME=mine", "FROM=request"]
    assert merged_environment(["A=1", "B=2"], ["A", "C=3=4"]) == ["B=2", "C=3=4"]


def test_hostname_is_the_pods_or_the_nodes() -> None:
    """HOSTNAME is the pod's hostname; on the node's network, where the pod has none, the node's."""
    assert "HOSTNAME=node" in container_spec(container_input())["process"]["env"]
    request = container_input()
    request.sandbox_config.hostname = "pod"
    assert "HOSTNAME=pod" in container_spec(request)["process"]["env"]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("A", b"\xff", r"envs\[0\]\.value"),
        ("", b"x", r"envs\[0\]\.key"),
        ("A=B", b"", r"envs\[0\]"),
        ("A", b"\0", "NUL"),
    ],
)
def test_impossible_variables_are_refused(key: str, value: bytes, match: str) -> None:
    """A value that is not UTF-8, a name that is none and a NUL byte name the entry."""
    config = cri.ContainerConfig(command=["true"])
    config.envs.add(key=key, value=value)
    with pytest.raises(InvalidArgument, match=match):
        container_spec(container_input(config=config))


def test_working_directory() -> None:
    """The request's directory wins over the image's; a relative one is refused."""
    assert container_spec(container_input(image_config={"config": IMAGE}))["process"]["cwd"] == "/image"
    config = cri.ContainerConfig(command=["true"], working_dir="/mine")
    assert container_spec(container_input(config=config, image_config={"config": IMAGE}))["process"]["cwd"] == "/mine"
    with pytest.raises(InvalidArgument, match="working_dir"):
        container_spec(container_input(config=cri.ContainerConfig(command=["true"], working_dir="mine")))


def test_terminal() -> None:
    """A terminal brings TERM, which the request may set otherwise."""
    config = cri.ContainerConfig(command=["true"], tty=True)
    process = container_spec(container_input(config=config))["process"]
    assert process["terminal"] is True
    assert "TERM=xterm" in process["env"]


def test_exec_takes_over_the_containers_process() -> None:
    """An exec'd process has the container's user, environment and confinement, other arguments and its own terminal."""
    config = cri.ContainerConfig(command=["true"], tty=True)
    config.linux.security_context.run_as_user.value = 7
    spec = container_spec(container_input(config=config))
    process = exec_process(spec, ["ls", "-l"], tty=False)
    assert process["args"] == ["ls", "-l"]
    assert process["user"]["uid"] == 7
    assert "terminal" not in process
    assert exec_process(spec, ["ls"], tty=True)["terminal"] is True
    assert spec["process"]["args"] == ["true"]
    with pytest.raises(InvalidArgument, match="cmd"):
        exec_process(spec, [], tty=False)
