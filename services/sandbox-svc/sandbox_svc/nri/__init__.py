"""The Node Resource Interface: plugins that hear of pods and containers and may change containers as they are made.

The protocol of github.com/containerd/nri v0.12 (ttrpc over one multiplexed unix connection a plugin). The RPCs of
sandbox-svc talk to `hooks.Hooks` and supply what `hooks.Runtime` asks; everything else in here is the protocol:
frames (mux), a connection (connection), one plugin (plugin), all of them (registry), how their wishes are put
together (owners, merge), what is not allowed (validator), and where plugins come from (launch, listener).
"""
