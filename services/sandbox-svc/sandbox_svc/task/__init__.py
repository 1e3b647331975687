"""The client half of containerd's shim v2 protocol: our own shims and foreign ones, told apart in one place."""
