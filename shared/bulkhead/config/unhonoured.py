"""Options that are read and checked but do not have their effect yet; using one warns. README lists the same."""

#: Model paths; "*" stands for a handler's or a host's name.
UNHONOURED = frozenset(
    {
        "runtime.enable_cdi",
        "runtime.cdi_spec_dirs",
        "runtime.ignore_blockio_not_enabled_errors",
        "runtime.ignore_rdt_not_enabled_errors",
        "runtime.enable_criu",
        "runtime.selinux_category_range",
    }
)
