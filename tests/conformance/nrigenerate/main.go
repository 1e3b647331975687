// Command nrigenerate applies NRI adjustments to OCI specs with the protocol's own generator, for Bulkhead's tests: each
// line of standard input is {"spec": …, "adjust": …} (protobuf's JSON), each line of output {"spec": …} or {"error": …}.
package main

import (
	"bufio"
	"encoding/json"
	"os"

	"github.com/containerd/nri/pkg/api"
	nri "github.com/containerd/nri/pkg/runtime-tools/generate"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	"google.golang.org/protobuf/encoding/protojson"
)

type line struct {
	Spec   *rspec.Spec     `json:"spec,omitempty"`
	Adjust json.RawMessage `json:"adjust,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func apply(question []byte) line {
	var asked line
	if err := json.Unmarshal(question, &asked); err != nil {
		return line{Error: err.Error()}
	}
	adjust := &api.ContainerAdjustment{}
	if err := protojson.Unmarshal(asked.Adjust, adjust); err != nil {
		return line{Error: err.Error()}
	}
	plain := generate.NewFromSpec(asked.Spec)
	generator := nri.SpecGenerator(
		&plain,
		nri.WithRdtResolver(func(name string) (*rspec.LinuxIntelRdt, error) { return &rspec.LinuxIntelRdt{ClosID: name}, nil }),
		nri.WithBlockIOResolver(func(name string) (*rspec.LinuxBlockIO, error) {
			weight := uint16(len(name))
			return &rspec.LinuxBlockIO{Weight: &weight}, nil
		}),
	)
	if err := generator.Adjust(adjust); err != nil {
		return line{Error: err.Error()}
	}
	return line{Spec: generator.Config}
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(make([]byte, 1<<20), 1<<20)
	output := json.NewEncoder(os.Stdout)
	for input.Scan() {
		if err := output.Encode(apply(input.Bytes())); err != nil {
			panic(err)
		}
	}
}
