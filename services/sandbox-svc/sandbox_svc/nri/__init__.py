"""The Node Resource Interface: plugins that hear of pods and containers and may change containers as they are made.

The RPCs of sandbox-svc talk to `lifecycle.Lifecycle`: it makes messages of records and OCI specs (convert…), relays
them through `hooks.Hooks`, and has the answers applied to a spec that is being made (apply…) or to containers that are
there (node_runtime). Everything else in here is the protocol of github.com/containerd/nri v0.12 (ttrpc over one
multiplexed unix connection a plugin): frames (mux), a connection (connection), one plugin (plugin), all of them
(registry), how their wishes are put together (keys, owners, merge), what is not allowed (validator), and where plugins
come from (launch, listener).
"""
