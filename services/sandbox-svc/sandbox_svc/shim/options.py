"""The runtime's options as they come with Create or start."""

from google.protobuf.any_pb2 import Any

from bulkhead.errors import InvalidArgument
from bulkhead.proto.containerd.runc_options_pb2 import Options
from bulkhead.proto.containerd.runtime_options_pb2 import Options as ConfiguredOptions

#: Key of containerd's `options` table -> field.
KEYS = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "SystemdCgroup": "systemd_cgroup",
    "CriuImagePath": "criu_image_path",
    "CriuWorkPath": "criu_work_path",
}


def read(packed: Any) -> Options:
    """Return the options: runc's own, or the TOML table that containerd's CRI sends to a runtime it does not know.

    An empty Any means the defaults; another type is an InvalidArgument that names it.
    """
    name = packed.type_url.rpartition("/")[2]
    if not name:
        return Options()
    if name == Options.DESCRIPTOR.full_name:
        return Options.FromString(packed.value)
    if name == ConfiguredOptions.DESCRIPTOR.full_name:
        return _from_table(ConfiguredOptions.FromString(packed.value))
    raise InvalidArgument(f"runtime options of type {name!r}: this shim takes {Options.DESCRIPTOR.full_name}")


def _from_table(configured: ConfiguredOptions) -> Options:
    import tomllib  # only a stock containerd needs it: pods that the zygote made need not carry it

    text = configured.config_body
    try:
        if configured.config_path:
            with open(configured.config_path, "rb") as file:
                text = file.read()
        table = tomllib.loads(text.decode())
        return Options(**{KEYS[key]: value for key, value in table.items() if key in KEYS})
    except (OSError, ValueError, TypeError) as error:
        raise InvalidArgument(f"runtime options {configured.config_path or 'in config_body'}: {error}") from error
