//go:build tools

// Package tools pins the reader of checkpoints that the tests ask.
package tools

import _ "github.com/checkpoint-restore/checkpointctl"
