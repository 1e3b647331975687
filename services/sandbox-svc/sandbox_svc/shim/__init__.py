"""The shim: one process a pod, which owns its processes, their stdio and their log files, and outlives every daemon.

It imports nothing of sandbox-svc outside this package, and nothing that is not the standard library, protobuf or
bulkhead's own small modules: each import is paid once in the zygote, each object it touches once a pod.
"""
