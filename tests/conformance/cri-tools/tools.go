//go:build tools

// Package tools pins the Kubernetes project's own CRI client and conformance suite.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
