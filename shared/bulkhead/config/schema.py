"""Which option stands where in containerd's file, versions 1 to 3, and where it goes in our model.

An `Option` without a target is one that containerd 1.5 to 2.4 knows and Bulkhead has no use for: it is accepted with
a warning. Sources: containerd docs/cri/config.md, internal/cri/config and the configuration guides of 1.5 to 2.4.
"""

from dataclasses import fields

from bulkhead.config.checks import (
    above,
    absolute,
    at_least,
    exports,
    key_model,
    log_format,
    log_level,
    one_of,
    port,
    recursive_read_only,
    sandboxer,
)
from bulkhead.config.option import Each as Each
from bulkhead.config.option import Option as Option
from bulkhead.config.option import Table as Table
from bulkhead.config.plugins import NriValidator

_HANDLER: Table = {
    "runtime_type": Option("str", "runtime.runtimes.*.runtime_type"),
    "runtime_path": Option("str", "runtime.runtimes.*.runtime_path"),
    "pod_annotations": Option("strs", "runtime.runtimes.*.pod_annotations"),
    "container_annotations": Option("strs", "runtime.runtimes.*.container_annotations"),
    "privileged_without_host_devices": Option("bool", "runtime.runtimes.*.privileged_without_host_devices"),
    "privileged_without_host_devices_all_devices_allowed": Option(
        "bool", "runtime.runtimes.*.privileged_without_host_devices_all_devices_allowed"
    ),
    "cgroup_writable": Option("bool", "runtime.runtimes.*.cgroup_writable"),
    "base_runtime_spec": Option("str", "runtime.runtimes.*.base_runtime_spec"),
    "cni_conf_dir": Option("str", "runtime.runtimes.*.cni_conf_dir"),
    "cni_max_conf_num": Option("int", "runtime.runtimes.*.cni_max_conf_num", check=at_least(0)),
    "snapshotter": Option("str", "runtime.runtimes.*.snapshotter"),
    "sandboxer": Option("str", "runtime.runtimes.*.sandboxer", check=sandboxer),
    "sandbox_mode": Option("str"),
    "disable_pause_image_pull": Option("bool"),
    "io_type": Option("str", check=one_of("", "fifo")),
    "treat_ro_mounts_as_rro": Option("str", "runtime.runtimes.*.treat_ro_mounts_as_rro", check=recursive_read_only),
    "options": Option("table", "runtime.runtimes.*.options"),
    "runtime_engine": Option("str", deprecated="deprecated, it belongs to a runtime type that is gone"),
    "runtime_root": Option("str", deprecated="deprecated, use options.Root"),
}

_AUTH: Table = {
    name: Option(
        "str",
        f"images.registry.auths.*.{name}",
        deprecated="deprecated, use image pull secrets or bulkhead.image_credential_provider_config",
        secret=True,
    )
    for name in ("username", "password", "auth", "identitytoken")
}
_REGISTRY_DEPRECATED = "deprecated, use config_path and hosts.toml"
_REGISTRY: Table = {
    "config_path": Option("str", "images.registry.config_path"),
    "headers": Each(Option("strs", "images.registry.headers.*")),
    "mirrors": Each({"endpoint": Option("strs", "images.registry.mirrors.*", deprecated=_REGISTRY_DEPRECATED)}),
    "configs": Each(
        {
            "auth": _AUTH,
            "tls": {
                "insecure_skip_verify": Option(
                    "bool", "images.registry.tls.*.insecure_skip_verify", deprecated=_REGISTRY_DEPRECATED
                ),
                "ca_file": Option("str", "images.registry.tls.*.ca_file", deprecated=_REGISTRY_DEPRECATED),
                "cert_file": Option("str", "images.registry.tls.*.cert_file", deprecated=_REGISTRY_DEPRECATED),
                "key_file": Option("str", "images.registry.tls.*.key_file", deprecated=_REGISTRY_DEPRECATED),
            },
        }
    ),
    "auths": Each(_AUTH),
}

_CNI: Table = {
    "bin_dirs": Option("strs", "runtime.cni.bin_dirs"),
    "bin_dir": Option("str", "runtime.cni.bin_dirs", deprecated="deprecated, use bin_dirs"),
    "conf_dir": Option("str", "runtime.cni.conf_dir"),
    "max_conf_num": Option("int", "runtime.cni.max_conf_num", check=at_least(0)),
    "setup_serially": Option("bool", "runtime.cni.setup_serially"),
    "conf_template": Option("str", "runtime.cni.conf_template"),
    "ip_pref": Option("str", "runtime.cni.ip_pref", check=one_of("", "ipv4", "ipv6", "cni")),
    "use_internal_loopback": Option("bool", "runtime.cni.use_internal_loopback"),
}

_RUNTIME: Table = {
    "enable_selinux": Option("bool", "runtime.enable_selinux"),
    "selinux_category_range": Option("int", "runtime.selinux_category_range", check=at_least(0)),
    "max_container_log_line_size": Option("int", "runtime.max_container_log_line_size", check=at_least(-1)),
    "disable_cgroup": Option("bool", "runtime.disable_cgroup"),
    "disable_apparmor": Option("bool", "runtime.disable_apparmor"),
    "restrict_oom_score_adj": Option("bool", "runtime.restrict_oom_score_adj"),
    "disable_proc_mount": Option("bool", "runtime.disable_proc_mount"),
    "unset_seccomp_profile": Option("str", "runtime.unset_seccomp_profile"),
    "tolerate_missing_hugetlb_controller": Option("bool", "runtime.tolerate_missing_hugetlb_controller"),
    "disable_hugetlb_controller": Option("bool", "runtime.disable_hugetlb_controller"),
    "device_ownership_from_security_context": Option("bool", "runtime.device_ownership_from_security_context"),
    "ignore_image_defined_volumes": Option("bool", "runtime.ignore_image_defined_volumes"),
    "netns_mounts_under_state_dir": Option("bool", "runtime.netns_mounts_under_state_dir"),
    "enable_unprivileged_ports": Option("bool", "runtime.enable_unprivileged_ports"),
    "enable_unprivileged_icmp": Option("bool", "runtime.enable_unprivileged_icmp"),
    "enable_cdi": Option("bool", "runtime.enable_cdi"),
    "cdi_spec_dirs": Option("strs", "runtime.cdi_spec_dirs"),
    "drain_exec_sync_io_timeout": Option("duration", "runtime.drain_exec_sync_io_timeout", check=at_least(0)),
    "ignore_deprecation_warnings": Option("strs"),
    "enable_criu": Option("bool", "runtime.enable_criu"),
}

_CONTAINERD: Table = {
    "default_runtime_name": Option("str", "runtime.default_runtime_name"),
    "runtimes": Each(_HANDLER),
    "ignore_blockio_not_enabled_errors": Option("bool", "runtime.ignore_blockio_not_enabled_errors"),
    "ignore_rdt_not_enabled_errors": Option("bool", "runtime.ignore_rdt_not_enabled_errors"),
}

_IMAGES: Table = {
    "snapshotter": Option("str", "images.snapshotter"),
    "disable_snapshot_annotations": Option("bool", "images.disable_snapshot_annotations"),
    "discard_unpacked_layers": Option("bool", "images.discard_unpacked_layers"),
}

_PULL: Table = {
    "max_concurrent_downloads": Option("int", "images.max_concurrent_downloads", check=at_least(0)),
    "concurrent_layer_fetch_buffer": Option("int"),
    "image_pull_progress_timeout": Option("duration", "images.image_pull_progress_timeout", check=at_least(0)),
    "image_pull_with_sync_fs": Option("bool", "images.image_pull_with_sync_fs"),
    "use_local_image_pull": Option("bool"),
    "image_decryption": {"key_model": Option("str", "images.key_model", check=key_model)},
    "registry": _REGISTRY,
}

_STREAMING: Table = {
    "disable_tcp_service": Option("bool"),
    "stream_server_address": Option("str", "streaming.stream_server_address"),
    "stream_server_port": Option("str", "streaming.stream_server_port", check=port),
    "stream_idle_timeout": Option("duration", "streaming.stream_idle_timeout", check=at_least(0)),
    "enable_tls_streaming": Option("bool", "streaming.enable_tls_streaming"),
    "x509_key_pair_streaming": {
        # containerd's own guide prints this table in the middle of its parent, so in files copied from there the
        # options that follow land here; containerd ignores them without a word.
        **{
            name: Option(node.kind, deprecated="it stands under x509_key_pair_streaming, where it has no effect")
            for name, node in _RUNTIME.items()
            if isinstance(node, Option)
        },
        "max_concurrent_downloads": Option(
            "int", deprecated="it stands under x509_key_pair_streaming, where it has no effect"
        ),
        "tls_cert_file": Option("str", "streaming.tls_cert_file"),
        "tls_key_file": Option("str", "streaming.tls_key_file"),
    },
}

_OLD = "deprecated, use runtimes"
_OLD_RUNTIME: Table = {
    "no_pivot": Option("bool", deprecated="deprecated, use NoPivotRoot in the handler's options"),
}


def _renamed(table: Table, name: str) -> Table:
    """The same options with a fixed name in place of the user's: default_runtime is the handler "default"."""
    return {
        key: Option(node.kind, node.target.replace("*", name), node.deprecated or _OLD, node.check)
        for key, node in table.items()
        if isinstance(node, Option)
    }


_OLD_RUNTIME["default_runtime"] = _renamed(_HANDLER, "default")
_OLD_RUNTIME["untrusted_workload_runtime"] = _renamed(_HANDLER, "untrusted")

#: `plugins."io.containerd.grpc.v1.cri"` of versions 1 ("cri") and 2: everything in one table.
CRI_V2: Table = {
    **_RUNTIME,
    **_PULL,
    **_STREAMING,
    "sandbox_image": Option("str", "images.pinned_images.sandbox"),
    "stats_collect_period": Option("seconds", "images.stats_collect_period", check=at_least(0)),
    "systemd_cgroup": Option("bool", deprecated="deprecated, use SystemdCgroup in the handler's options"),
    "enable_ipv6_dad": Option("bool"),
    "stream_server_tls": Option("bool"),
    "containerd": {**_CONTAINERD, **_IMAGES, **_OLD_RUNTIME},
    "cni": _CNI,
}

_KINDS: dict[type, str] = {bool: "bool", str: "str", tuple: "strs"}
_NRI: Table = {
    "disable": Option("bool", "nri.disable"),
    "disable_connections": Option("bool", "nri.disable_connections"),
    "plugin_path": Option("str", "nri.plugin_path", check=absolute),
    "plugin_config_path": Option("str", "nri.plugin_config_path", check=absolute),
    "socket_path": Option("str", "nri.socket_path", check=absolute),
    "plugin_registration_timeout": Option("duration", "nri.plugin_registration_timeout", check=above(0)),
    "plugin_request_timeout": Option("duration", "nri.plugin_request_timeout", check=above(0)),
    "default_validator": {
        item.name: Option(_KINDS[type(item.default)], f"nri.default_validator.{item.name}")
        for item in fields(NriValidator)
    },
}

#: Plugins that are configured alike in versions 2 and 3.
_OTHERS: dict[str, Table] = {
    "io.containerd.nri.v1.nri": _NRI,
    "io.containerd.service.v1.tasks-service": {
        "blockio_config_file": Option("str", "runtime.blockio_config_file"),
        "rdt_config_file": Option("str", "runtime.rdt_config_file"),
    },
    "io.containerd.image-verifier.v1.bindir": {
        "bin_dir": Option("str", "image_verifier.bin_dir"),
        "max_verifiers": Option("int", "image_verifier.max_verifiers"),
        "per_verifier_timeout": Option("duration", "image_verifier.per_verifier_timeout", check=above(0)),
    },
}

#: The plugin tables of version 3 that are read.
PLUGINS_V3: dict[str, Table] = {
    "io.containerd.cri.v1.images": {
        **_IMAGES,
        **_PULL,
        "pinned_images": Each(Option("str", "images.pinned_images.*")),
        "runtime_platforms": Each(
            {"platform": Option("str"), "snapshotter": Option("str", "images.runtime_platforms.*")}
        ),
        "stats_collect_period": Option("seconds", "images.stats_collect_period", check=at_least(0)),
    },
    "io.containerd.cri.v1.runtime": {
        **_RUNTIME,
        "stats_collect_period": Option("duration", "runtime.stats_collect_period", check=at_least(0)),
        "stats_retention_period": Option("duration"),
        "containerd": _CONTAINERD,
        "cni": _CNI,
    },
    "io.containerd.grpc.v1.cri": _STREAMING,
    **_OTHERS,
}
PLUGINS_V2: dict[str, Table] = {"io.containerd.grpc.v1.cri": CRI_V2, **_OTHERS}
PLUGINS_V1: dict[str, Table] = {"cri": CRI_V2}

_SOCKET: Table = {"address": Option("str"), "uid": Option("int"), "gid": Option("int")}

#: The top level, but for `plugins`, `imports` and `bulkhead`, which have rules of their own.
TOP: Table = {
    "version": Option("int", "version"),
    "root": Option("str", "root", check=absolute),
    "state": Option("str", "state", check=absolute),
    "temp": Option("str"),
    "plugin_dir": Option("str"),
    "oom_score": Option("int"),
    "disabled_plugins": Option("strs"),
    "required_plugins": Option("strs"),
    "grpc": {
        "address": Option("str", "grpc.address", check=absolute),
        "uid": Option("int", "grpc.uid", check=at_least(0)),
        "gid": Option("int", "grpc.gid", check=at_least(0)),
        **{
            name: Option("str")
            for name in ("tcp_address", "tcp_tls_ca", "tcp_tls_cert", "tcp_tls_key", "tcp_tls_common_name")
        },
        "max_recv_message_size": Option("int"),
        "max_send_message_size": Option("int"),
    },
    "ttrpc": _SOCKET,
    "debug": {
        **_SOCKET,
        "level": Option("str", "debug.level", check=log_level),
        "format": Option("str", "debug.format", check=log_format),
    },
    "metrics": {"address": Option("str"), "grpc_histogram": Option("bool")},
    "cgroup": {"path": Option("str")},
    "proxy_plugins": Each(
        {
            "type": Option("str", "proxy_plugins.*.type"),
            "address": Option("str", "proxy_plugins.*.address", check=absolute),
            "platform": Option("str"),
            "capabilities": Option("strs"),
            "exports": Option("table", "proxy_plugins.*.exports", check=exports),
        }
    ),
    "timeouts": Option("table"),
    "stream_processors": Each(
        {
            "accepts": Option("strs", "stream_processors.*.accepts"),
            "returns": Option("str", "stream_processors.*.returns"),
            "path": Option("str", "stream_processors.*.path"),
            "args": Option("strs", "stream_processors.*.args"),
            "env": Option("strs", "stream_processors.*.env"),
        }
    ),
}
