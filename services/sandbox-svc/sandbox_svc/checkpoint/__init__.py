"""Checkpoints of containers: processes and memory by CRIU, and what else Kubernetes' archive of one holds."""
