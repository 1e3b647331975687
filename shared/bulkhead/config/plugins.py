"""The options of containerd's plugins beside the CRI's own; part of `bulkhead.config.model`."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class NriValidator:
    """`nri.default_validator`: what no plugin may do, and which plugins must have had their say."""

    enable: bool = False
    reject_oci_hook_adjustment: bool = False
    reject_runtime_default_seccomp_adjustment: bool = False
    reject_unconfined_seccomp_adjustment: bool = False
    reject_custom_seccomp_adjustment: bool = False
    reject_namespace_adjustment: bool = False
    reject_sysctl_adjustment: bool = False
    #: Names ("name" or "NN-name") of plugins without which no pod or container is made.
    required_plugins: tuple[str, ...] = ()
    #: The annotation that lets a pod or container do without required plugins; "" for none.
    tolerate_missing_plugins_annotation: str = ""


@dataclass(frozen=True)
class Nri:
    """`io.containerd.nri.v1.nri`: plugins of the Node Resource Interface."""

    disable: bool = False
    #: Whether only the plugins of plugin_path are there: no socket is opened.
    disable_connections: bool = False
    plugin_path: str = "/opt/nri/plugins"
    plugin_config_path: str = "/etc/nri/conf.d"
    socket_path: str = "/var/run/nri/nri.sock"
    #: Seconds a plugin has to register once it is connected, and to answer a request.
    plugin_registration_timeout: float = 5.0
    plugin_request_timeout: float = 2.0
    default_validator: NriValidator = field(default_factory=NriValidator)


@dataclass(frozen=True)
class ImageVerifier:
    """`io.containerd.image-verifier.v1.bindir`: programs that must agree to an image before it is unpacked and run."""

    #: All files in it are verifiers; without the directory every image passes.
    bin_dir: str = "/opt/containerd/image-verifier/bin"
    #: How many are asked, by name in order; below 0 all are.
    max_verifiers: int = 10
    #: Seconds.
    per_verifier_timeout: float = 10.0


@dataclass(frozen=True)
class ProxyPlugin:
    """`[proxy_plugins.<name>]`: a plugin of containerd's that is a program of its own, called on a unix socket."""

    #: "snapshot" is what Bulkhead calls; plugins of other types are left alone.
    type: str = ""
    address: str = ""
    #: Free-form; `root` is the directory below which a snapshotter's mounts lie.
    exports: dict[str, str] = field(default_factory=dict)

    @property
    def snapshotter(self) -> bool:
        """Whether it is one."""
        return self.type in ("snapshot", "io.containerd.snapshotter.v1")

    @property
    def root(self) -> Path | None:
        """The directory that its snapshots lie below, None where the file does not say."""
        return Path(self.exports["root"]) if self.exports.get("root") else None
