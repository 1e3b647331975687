//go:build tools

// Package tools pins imgcrypt's programs, with which others encrypt and decrypt images. Releases after 1.1.3 have them in
// a module of their own that was never published. This is the ocicrypt of that time, too (1.1.2, older PKCS#7).
package tools

import (
	_ "github.com/containerd/imgcrypt/cmd/ctd-decoder"
	_ "github.com/containerd/imgcrypt/cmd/ctr"
)
