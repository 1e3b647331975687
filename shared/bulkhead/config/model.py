"""The configuration as the services see it: one frozen tree, whatever version of file it came from.

Field names are containerd's option names (docs/cri/config.md of containerd), so that an error or a question about an
option can be looked up there. Durations are seconds, sizes bytes.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bulkhead.config.plugins import ImageVerifier as ImageVerifier
from bulkhead.config.plugins import Nri as Nri
from bulkhead.config.plugins import NriValidator as NriValidator
from bulkhead.config.plugins import ProxyPlugin as ProxyPlugin


@dataclass(frozen=True)
class Grpc:
    """`[grpc]`: the CRI socket."""

    address: str = "/run/bulkhead/cri.sock"
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Debug:
    """`[debug]`: logging."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True)
class RuntimeHandler:
    """One entry of `containerd.runtimes`: what a RuntimeClass's handler name stands for."""

    name: str = "runc"
    runtime_type: str = "io.containerd.runc.v2"
    runtime_path: str = ""
    pod_annotations: tuple[str, ...] = ()
    container_annotations: tuple[str, ...] = ()
    privileged_without_host_devices: bool = False
    privileged_without_host_devices_all_devices_allowed: bool = False
    cgroup_writable: bool = False
    base_runtime_spec: str = ""
    cni_conf_dir: str = ""
    cni_max_conf_num: int = 0
    snapshotter: str = ""
    sandboxer: str = "podsandbox"
    treat_ro_mounts_as_rro: str = ""
    #: The free-form `options` table: BinaryName, Root, SystemdCgroup, NoNewKeyring, ShimCgroup, IoUid, IoGid, …
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cni:
    """`cni`: the pod network."""

    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    conf_dir: str = "/etc/cni/net.d"
    max_conf_num: int = 1
    setup_serially: bool = False
    conf_template: str = ""
    ip_pref: str = "ipv4"
    use_internal_loopback: bool = True


@dataclass(frozen=True)
class Runtime:
    """The runtime half of the CRI tables (`io.containerd.cri.v1.runtime` in version 3)."""

    enable_selinux: bool = False
    selinux_category_range: int = 1024
    max_container_log_line_size: int = 16384
    disable_cgroup: bool = False
    disable_apparmor: bool = False
    restrict_oom_score_adj: bool = False
    disable_proc_mount: bool = False
    unset_seccomp_profile: str = ""
    tolerate_missing_hugetlb_controller: bool = True
    disable_hugetlb_controller: bool = True
    device_ownership_from_security_context: bool = False
    ignore_image_defined_volumes: bool = False
    netns_mounts_under_state_dir: bool = False
    enable_unprivileged_ports: bool = True
    enable_unprivileged_icmp: bool = True
    enable_cdi: bool = True
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    #: Seconds; containerd's default of 0 (for ever) becomes 5 unless the file says otherwise.
    drain_exec_sync_io_timeout: float = 5.0
    stats_collect_period: float = 1.0
    enable_criu: bool = True
    default_runtime_name: str = "runc"
    runtimes: dict[str, RuntimeHandler] = field(default_factory=dict)
    cni: Cni = field(default_factory=Cni)
    #: `[plugins."io.containerd.service.v1.tasks-service"]`: files of block I/O and RDT classes; "" for none.
    blockio_config_file: str = ""
    rdt_config_file: str = ""
    ignore_blockio_not_enabled_errors: bool = False
    ignore_rdt_not_enabled_errors: bool = False


@dataclass(frozen=True)
class RegistryAuth:
    """`registry.configs.<host>.auth`, as in a Docker config.json. Never shown by repr or `config show`."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    identitytoken: str = field(default="", repr=False)


@dataclass(frozen=True)
class RegistryTls:
    """`registry.configs.<host>.tls` (deprecated in containerd, still honoured)."""

    insecure_skip_verify: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True)
class Registry:
    """`registry`: where images come from."""

    #: Directories with `<host>/hosts.toml` or Docker certificates, in order.
    config_path: tuple[str, ...] = ("/etc/containerd/certs.d", "/etc/docker/certs.d")
    headers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: Deprecated `registry.mirrors.<host>.endpoint`, used only where config_path was not set.
    mirrors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    auths: dict[str, RegistryAuth] = field(default_factory=dict)
    tls: dict[str, RegistryTls] = field(default_factory=dict)


@dataclass(frozen=True)
class Images:
    """The image half of the CRI tables (`io.containerd.cri.v1.images` in version 3)."""

    snapshotter: str = "overlayfs"
    disable_snapshot_annotations: bool = True
    discard_unpacked_layers: bool = False
    max_concurrent_downloads: int = 3
    image_pull_progress_timeout: float = 300.0
    #: Whether or not: what is pulled is always synced before it counts.
    image_pull_with_sync_fs: bool = False
    stats_collect_period: float = 10.0
    #: name -> reference; "sandbox" is the pause image.
    pinned_images: dict[str, str] = field(default_factory=lambda: {"sandbox": "registry.k8s.io/pause:3.10.2"})
    registry: Registry = field(default_factory=Registry)
    #: `runtime_platforms.<handler>.snapshotter`; it has gone into the handlers that name none of their own.
    runtime_platforms: dict[str, str] = field(default_factory=dict)
    #: `image_decryption.key_model`: "node", or "" for no decryption.
    key_model: str = "node"

    @property
    def sandbox_image(self) -> str:
        """The pause image's reference."""
        return self.pinned_images.get("sandbox", "")


@dataclass(frozen=True)
class Streaming:
    """Where stream-svc listens, and its TLS."""

    stream_server_address: str = "127.0.0.1"
    stream_server_port: str = "0"
    stream_idle_timeout: float = 4 * 3600.0
    enable_tls_streaming: bool = False
    tls_cert_file: str = ""
    tls_key_file: str = ""


@dataclass(frozen=True)
class StreamProcessor:
    """`[stream_processors.<id>]`."""

    id: str
    accepts: tuple[str, ...] = ()
    returns: str = ""
    path: str = ""
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeyRule:
    """`[bulkhead.key_policy.<name>]`: pods for which everything given here holds may use these keys."""

    #: Kubernetes namespaces; none means any.
    namespaces: tuple[str, ...] = ()
    #: Service accounts as "<namespace>/<name>"; none means any.
    service_accounts: tuple[str, ...] = ()
    #: Labels that the pod must have, each with that value.
    pod_labels: dict[str, str] = field(default_factory=dict)
    #: Fingerprints as `bulkhead status` and the log show them.
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bulkhead:
    """`[bulkhead]`: what containerd has no word for."""

    #: Loopback ports of /metrics, /healthz and /readyz by service; 0 picks a free one, -1 switches it off.
    metrics_ports: dict[str, int] = field(
        default_factory=lambda: {
            "cri-frontend": 9470,
            "image-svc": 9471,
            "sandbox-svc": 9472,
            "stream-svc": 9473,
            "decryptor": 9474,
        }
    )
    #: The system user of each unprivileged service.
    users: dict[str, str] = field(
        default_factory=lambda: {
            "cri-frontend": "bulkhead-frontend",
            "image-svc": "bulkhead-image",
            "stream-svc": "bulkhead-stream",
            "decryptor": "bulkhead-decryptor",
        }
    )
    #: The directory of private keys; `--decryption-keys-path` of a ctd-decoder stream processor wins.
    decryption_keys_path: str = "/etc/containerd/ocicrypt/keys"
    #: Seconds for which it is remembered that a key opens a layer; 0 unwraps at every use.
    key_check_cache: float = 10.0
    #: Seconds that one token or key provider may take for one answer.
    key_timeout: float = 20.0
    #: Seconds that the decryptor may give no sign of life while it works on a layer; the layer is then begun again.
    decryptor_silence: float = 30.0
    #: A key named by a rule is for the pods of the rules that name it; a key that none names is for all.
    key_policy: dict[str, KeyRule] = field(default_factory=dict)
    #: What one layer may hold when unpacked.
    unpack_max_entries: int = 2_000_000
    unpack_max_bytes: int = 64 * 1024**3
    #: Bytes of the tar of an archive that is imported, uncompressed.
    import_max_bytes: int = 256 * 1024**3
    #: Seconds one layer may take to unpack, and a whole pull to finish.
    unpack_timeout: float = 1800.0
    #: Layers unpacked at a time by all pulls, two processes each; 0: as many as there are processors, at least 2.
    unpack_slots: int = 0
    pull_timeout: float = 3600.0
    #: Bytes a second below which a download counts as stalled (measured over 30 s).
    pull_minimum_rate: int = 1024
    #: The kubelet's CredentialProviderConfig file, YAML or JSON, and the directory of the programs in it; "" for none.
    image_credential_provider_config: str = ""
    image_credential_provider_bin_dir: str = ""
    #: Seconds a CNI plugin chain may take.
    cni_timeout: float = 180.0
    #: NRI 0.1: the file and the directory of *.conf that name plugins to run; none where neither is there, or with "".
    nri_exec_conf_path: str = "/etc/nri/conf.json"
    nri_exec_conf_dir: str = "/etc/nri/resource.d"
    nri_exec_bin_dir: str = "/opt/nri/bin"
    #: Seconds one of them may take.
    nri_exec_timeout: float = 10.0
    #: Longest wait of the frontend for a restarting backend, seconds.
    backend_wait: float = 10.0


@dataclass(frozen=True)
class Config:
    """Everything one stack was told."""

    path: str = ""
    version: int = 3
    #: `<root>/io.bulkhead`: images, snapshots, databases.
    root: Path = Path("/var/lib/bulkhead/io.bulkhead")
    #: `<state>/io.bulkhead`: sockets, bundles, what a reboot forgets.
    state: Path = Path("/run/bulkhead/io.bulkhead")
    grpc: Grpc = field(default_factory=Grpc)
    debug: Debug = field(default_factory=Debug)
    runtime: Runtime = field(default_factory=Runtime)
    images: Images = field(default_factory=Images)
    streaming: Streaming = field(default_factory=Streaming)
    stream_processors: tuple[StreamProcessor, ...] = ()
    proxy_plugins: dict[str, ProxyPlugin] = field(default_factory=dict)
    nri: Nri = field(default_factory=Nri)
    image_verifier: ImageVerifier = field(default_factory=ImageVerifier)
    bulkhead: Bulkhead = field(default_factory=Bulkhead)

    def snapshotter_of(self, handler: str) -> str:
        """Return the snapshotter of a runtime handler's images and containers; a handler without one has the node's."""
        known = self.runtime.runtimes.get(handler or self.runtime.default_runtime_name)
        return (known and known.snapshotter) or self.images.snapshotter

    def exports_of(self, snapshotter: str) -> Path | None:
        """Return the directory that a proxy snapshotter's mounts lie below; None for one of Bulkhead's own.

        "" is the node's snapshotter.
        """
        plugin = self.proxy_plugins.get(snapshotter or self.images.snapshotter)
        return plugin.root if plugin is not None and plugin.snapshotter else None
