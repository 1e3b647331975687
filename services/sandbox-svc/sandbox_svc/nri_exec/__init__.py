"""NRI 0.1: plugins that are run, with JSON on their standard input and output, between a container's create and start.

The interface of containerd 1.5 and 1.6 (github.com/containerd/nri v0.1.0). Which plugins there are stands in files that
are read anew for every call (conf); what a plugin is told and answers is pure (messages); a chain runs them one after
the other (chain) at its moments (between, end). States: create, update and delete, and pause and resume around a
checkpoint; of pods create and delete, with the pod's own id as sandboxID. The README also names setup, which no runtime
ever sent.
"""

from sandbox_svc.nri_exec.chain import Chain
from sandbox_svc.nri_exec.messages import Subject

__all__ = ["Chain", "Subject"]
