"""What a request must look like: everything that can never work is refused here, before anything is made.

Each refusal names the field as the CRI proto spells it, the value, and what was expected.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from bulkhead.errors import InvalidArgument
from bulkhead.proto.runtime.v1 import api_pb2 as cri
from sandbox_svc.facts import CAPABILITIES

#: A Kubernetes object's annotations are 256 KiB together, a label's value is 63 characters; ours are limits of sanity.
LABEL_LIMIT, ANNOTATION_LIMIT = 64 * 1024, 512 * 1024
#: Kubernetes allows 253 characters in a name; sethostname(2) takes 64.
NAME_LIMIT, HOSTNAME_LIMIT = 253, 64
ENVIRONMENT_LIMIT = 128 * 1024

_HOSTNAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?")
# As the kubelet has it (pkg/apis/core/validation, SysctlContainSlashFmt).
_SYSCTL = re.compile(r"[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-zA-Z0-9]([-_a-zA-Z0-9]*[a-zA-Z0-9])?)*")


def pod(config: cri.PodSandboxConfig) -> None:
    """Check a pod's configuration."""
    no_nul(config, "config")
    _known_values(config, "config")
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata is missing, expected the pod's name, uid, namespace and attempt")
    _name("config.metadata.name", config.metadata.name)
    _name("config.metadata.namespace", config.metadata.namespace)
    if config.metadata.uid:
        _name("config.metadata.uid", config.metadata.uid)
    if config.hostname:
        _hostname(config.hostname)
    if config.log_directory:
        absolute("config.log_directory", config.log_directory)
    _labels("config", config.labels, config.annotations)
    _dns(config.dns_config)
    for at, mapping in enumerate(config.port_mappings):
        _port_mapping(f"config.port_mappings[{at}]", mapping)
    for name in config.linux.sysctls:
        if not _SYSCTL.fullmatch(name) or len(name) > NAME_LIMIT:
            raise InvalidArgument(
                f"config.linux.sysctls has the name {_short(name)}, expected one like net.ipv4.ip_forward"
            )
    if ".." in config.linux.cgroup_parent.split("/"):
        raise InvalidArgument(
            f"config.linux.cgroup_parent is {_short(config.linux.cgroup_parent)}, expected a path without '..'"
        )


def container(config: cri.ContainerConfig) -> None:
    """Check a container's configuration."""
    no_nul(config, "config")
    _known_values(config, "config")
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata is missing, expected the container's name and attempt")
    _name("config.metadata.name", config.metadata.name)
    if not config.image.image:
        raise InvalidArgument("config.image.image is empty, expected an image id or reference")
    if config.working_dir:
        absolute("config.working_dir", config.working_dir)
    _log_path(config.log_path)
    _labels("config", config.labels, config.annotations)
    for at, env in enumerate(config.envs):
        _environment(f"config.envs[{at}]", env)
    for at, mount in enumerate(config.mounts):
        _mount(f"config.mounts[{at}]", mount)
    for at, device in enumerate(config.devices):
        _device(f"config.devices[{at}]", device)
    wanted = config.linux.security_context.capabilities
    for field in ("add_capabilities", "add_ambient_capabilities"):
        _capabilities(f"config.linux.security_context.capabilities.{field}", getattr(wanted, field))


def grace(timeout: int) -> None:
    """Check StopContainer's grace period in seconds."""
    if timeout < 0:
        raise InvalidArgument(f"timeout is {timeout}, expected 0 (kill at once) or more seconds")


def command(cmd: Sequence[str]) -> None:
    """Check the command of an exec."""
    if not cmd or not cmd[0]:
        raise InvalidArgument("cmd is empty, expected a program and its arguments")
    for at, argument in enumerate(cmd):
        if "\0" in argument:
            raise InvalidArgument(f"cmd[{at}] contains a NUL byte, expected text without one")


def streaming(*, tty: bool, stderr: bool, some: bool) -> None:
    """Check the flags of Exec and Attach as the CRI states them."""
    if tty and stderr:
        raise InvalidArgument("tty and stderr are both true, expected one of them: a terminal has no stderr of its own")
    if not some:
        raise InvalidArgument("stdin, stdout and stderr are all false, expected at least one")


def ports(numbers: Sequence[int]) -> None:
    """Check the ports of a PortForward."""
    for at, number in enumerate(numbers):
        if not 0 < number < 65536:
            raise InvalidArgument(f"port[{at}] is {number}, expected 1 to 65535")


def absolute(field: str, path: str) -> None:
    """Check that a path is absolute."""
    if not path.startswith("/"):
        raise InvalidArgument(f"{field} is {_short(path)}, expected an absolute path")


def no_nul(message: Message, prefix: str) -> None:
    """Refuse a NUL byte in any string of a message: the kernel would end the string there."""
    for field, value in message.ListFields():
        where = f"{prefix}.{field.name}" if prefix else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _map_without_nul(value, where)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.is_repeated:
                for at, item in enumerate(value):
                    no_nul(item, f"{where}[{at}]")
            else:
                no_nul(value, where)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            zero: str | bytes = "\0" if field.type == FieldDescriptor.TYPE_STRING else b"\0"
            for item in value if field.is_repeated else (value,):
                if zero in item:
                    raise InvalidArgument(f"{where} contains a NUL byte, expected text without one")


def _known_values(message: Message, prefix: str) -> None:
    """Refuse a number of an enum that this release has no name for: what it asks for cannot be done.

    A profile_type that nobody knows, say, would be no profile.
    """
    for field, value in message.ListFields():
        where = f"{prefix}.{field.name}"
        if field.enum_type is not None:
            for number in value if field.is_repeated else (value,):
                if number not in field.enum_type.values_by_number:
                    raise InvalidArgument(f"{where} is {number}, expected {_values(field.enum_type)}")
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            if field.is_repeated:
                for at, item in enumerate(value):
                    _known_values(item, f"{where}[{at}]")
            else:
                _known_values(value, where)


def _values(enum: EnumDescriptor) -> str:
    """Return the values of an enum for an error: all of a short one, the ends of a long one."""
    values = [f"{value.name} ({value.number})" for value in enum.values]
    return f"{values[0]} to {values[-1]}" if len(values) > 8 else f"one of {', '.join(values)}"


def _map_without_nul(table: Mapping[str, object], where: str) -> None:
    for key, value in table.items():
        if "\0" in key or (isinstance(value, str) and "\0" in value):
            raise InvalidArgument(f"{where}[{_short(key)}] contains a NUL byte, expected text without one")


def _name(field: str, value: str) -> None:
    if not value:
        raise InvalidArgument(f"{field} is empty, expected a name")
    if len(value) > NAME_LIMIT:
        raise _long(field, value, NAME_LIMIT)
    # CNI_ARGS separates by ';': a name with one would pass for the name of another pod.
    if "/" in value or ";" in value or not value.isprintable():
        raise InvalidArgument(f"{field} is {_short(value)}, expected a name without '/', ';' and control characters")


def _hostname(value: str) -> None:
    if len(value) > HOSTNAME_LIMIT:
        raise _long("config.hostname", value, HOSTNAME_LIMIT)
    if not _HOSTNAME.fullmatch(value):
        raise InvalidArgument(
            f"config.hostname is {_short(value)}, expected letters, digits, '-' and '.', no '-' or '.' at an end"
        )


def _labels(prefix: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    for kind, table, limit in (("labels", labels, LABEL_LIMIT), ("annotations", annotations, ANNOTATION_LIMIT)):
        for key, value in table.items():
            if len(key) + len(value) > limit:
                raise InvalidArgument(
                    f"{prefix}.{kind}[{_short(key)}] has {len(key) + len(value)} characters, expected at most {limit}"
                )


def _dns(config: cri.DNSConfig) -> None:
    for kind, values in (("servers", config.servers), ("searches", config.searches), ("options", config.options)):
        for at, value in enumerate(values):
            if any(c.isspace() for c in value) or not value:
                raise InvalidArgument(
                    f"config.dns_config.{kind}[{at}] is {_short(value)}, expected one word of a line of resolv.conf"
                )


def _port_mapping(where: str, mapping: cri.PortMapping) -> None:
    for name, number in (("container_port", mapping.container_port), ("host_port", mapping.host_port)):
        if not 0 <= number < 65536 or (name == "container_port" and number == 0):
            raise InvalidArgument(f"{where}.{name} is {number}, expected a port number")
    if mapping.host_ip:
        try:
            ipaddress.ip_address(mapping.host_ip)
        except ValueError as error:
            raise InvalidArgument(f"{where}.host_ip is {_short(mapping.host_ip)}, expected an IP address") from error


def _environment(where: str, env: cri.KeyValue) -> None:
    if not env.key or "=" in env.key:
        raise InvalidArgument(f"{where}.key is {_short(env.key)}, expected a name without '='")
    # execve(2) refuses a single string of more than 32 pages.
    if len(env.key) + len(env.value) >= ENVIRONMENT_LIMIT:
        raise InvalidArgument(
            f"{where} ({env.key[:64]}) has {len(env.key) + len(env.value)} bytes, expected below {ENVIRONMENT_LIMIT}"
        )
    try:
        env.value.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{where}.value ({env.key[:64]}) is not UTF-8 ({error.reason} at byte {error.start}); "
            "expected UTF-8, since the OCI runtime reads it from JSON"
        ) from error


def _mount(where: str, mount: cri.Mount) -> None:
    absolute(f"{where}.container_path", mount.container_path)
    if mount.HasField("image") and mount.image.image:
        if mount.host_path:
            raise InvalidArgument(f"{where} has both image and host_path, expected one of them")
        return
    absolute(f"{where}.host_path", mount.host_path)
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != cri.PROPAGATION_PRIVATE):
        raise InvalidArgument(
            f"{where}.recursive_read_only is true, expected readonly true and propagation private with it"
        )


def _device(where: str, device: cri.Device) -> None:
    absolute(f"{where}.host_path", device.host_path)
    absolute(f"{where}.container_path", device.container_path)
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"{where}.permissions is {_short(device.permissions)}, expected some of r, w and m")


def _capabilities(where: str, names: Sequence[str]) -> None:
    """Refuse a capability that no kernel knows: runtimes would leave it out without a word."""
    for at, name in enumerate(names):
        if name.upper().removeprefix("CAP_") not in ("ALL", *CAPABILITIES):
            raise InvalidArgument(f"{where}[{at}] is {_short(name)}, expected a capability such as NET_ADMIN, or ALL")


def _log_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(
            f"config.log_path is {_short(path)}, expected a path relative to the pod's log_directory, without '..'"
        )


def _long(field: str, value: str, limit: int) -> InvalidArgument:
    return InvalidArgument(f"{field} has {len(value)} characters ({_short(value)}), expected at most {limit}")


def _short(value: str) -> str:
    """Return a value fit for a message: quoted, and cut at 80 characters."""
    return repr(value if len(value) <= 80 else f"{value[:77]}...")
