//go:build tools

// Package tools pins a runc that can map the ids of mounts, which user namespaces of pods need; Debian 12's cannot.
package tools

import _ "github.com/opencontainers/runc"
