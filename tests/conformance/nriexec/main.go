// An NRI 0.1 exec plugin around the interface's own skeleton, for Bulkhead's tests.
//
// It appends every request to the file that its configuration names, and answers what its configuration says:
//
//	{"log": "/file", "error": "", "errorState": "create", "cgroupsPath": "", "sleep": "0s", "metadata": {…}}
//
// cgroupsPath, which the skeleton's result has no member for, is printed by hand, for containers and not for pods.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/nri/skel"
	types "github.com/containerd/nri/types/v1"
)

type settings struct {
	Log         string            `json:"log"`
	Error       string            `json:"error"`
	ErrorState  string            `json:"errorState"`
	CgroupsPath string            `json:"cgroupsPath"`
	Sleep       string            `json:"sleep"`
	Metadata    map[string]string `json:"metadata"`
}

type plugin struct{}

func (plugin) Type() string {
	return filepath.Base(os.Args[0])
}

func (p plugin) Invoke(ctx context.Context, r *types.Request) (*types.Result, error) {
	var s settings
	if len(r.Conf) > 0 {
		if err := json.Unmarshal(r.Conf, &s); err != nil {
			return nil, err
		}
	}
	if s.Log != "" {
		if err := note(s.Log, p.Type(), r); err != nil {
			return nil, err
		}
	}
	if s.Sleep != "" {
		d, err := time.ParseDuration(s.Sleep)
		if err != nil {
			return nil, err
		}
		time.Sleep(d)
	}
	if s.Error != "" && (s.ErrorState == "" || s.ErrorState == string(r.State)) {
		fmt.Fprintln(os.Stderr, "about to refuse")
		return nil, errors.New(s.Error)
	}
	if s.CgroupsPath != "" && r.State == types.Create && !r.IsSandbox() {
		answer := map[string]any{
			"version": r.Version, "state": r.State, "id": r.ID, "pid": r.Pid,
			"cgroupsPath": filepath.Join(s.CgroupsPath, r.ID),
		}
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			return nil, err
		}
		os.Exit(0)
	}
	result := r.NewResult(p.Type())
	result.Metadata = s.Metadata
	return result, nil
}

// note adds one line to the log: the name of the plugin and the request as it was read.
func note(path, name string, r *types.Request) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return json.NewEncoder(f).Encode(map[string]any{"plugin": name, "request": r})
}

func main() {
	if err := skel.Run(context.Background(), plugin{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
