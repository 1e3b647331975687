"""The RPCs of the CRI's RuntimeService, one module each; every function takes the node, the request and the context."""
