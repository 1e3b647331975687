"""The OCI specs of containerd as the oracle for ours: which pods are compared, how, and which differences are meant."""
