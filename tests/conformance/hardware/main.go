// Command hardware asks the libraries that containerd uses what they make of files and requests for hardware, so that
// the tests can compare: `hardware cdi DIRECTORY...` injects CDI devices into the OCI spec on standard input,
// `hardware blockio FILE` converts block I/O classes, `hardware rdt FILE MOUNTS` sets up the RDT classes of a file in
// the resctrl that the file MOUNTS, in the format of /proc/mounts, lists.
package main

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	_ "unsafe" // for go:linkname

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

//go:linkname mountInfoPath github.com/intel/goresctrl/pkg/rdt.mountInfoPath
var mountInfoPath string

type answer struct {
	Spec       *oci.Spec                    `json:"spec,omitempty"`
	Unresolved []string                     `json:"unresolved,omitempty"`
	Classes    map[string]*oci.LinuxBlockIO `json:"classes,omitempty"`
	// Errors of files by path.
	Files map[string][]string `json:"files,omitempty"`
	Error string              `json:"error,omitempty"`
}

func main() {
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	blockio.SetLogger(quiet)
	rdt.SetLogger(quiet)
	var found answer
	var err error
	switch os.Args[1] {
	case "cdi":
		found, err = inject(os.Args[2:])
	case "blockio":
		found, err = classes(os.Args[2])
	case "rdt":
		mountInfoPath = os.Args[3]
		if err = rdt.Initialize(""); err == nil {
			err = rdt.SetConfigFromFile(os.Args[2], true)
		}
	}
	if err != nil {
		found.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		panic(err)
	}
}

func inject(directories []string) (answer, error) {
	var request struct {
		Spec    *oci.Spec
		Devices []string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		panic(err)
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(directories...), cdi.WithAutoRefresh(false))
	if err != nil {
		panic(err)
	}
	unresolved, err := cache.InjectDevices(request.Spec, request.Devices...)
	files := map[string][]string{}
	for path, problems := range cache.GetErrors() {
		for _, problem := range problems {
			files[path] = append(files[path], problem.Error())
		}
	}
	return answer{Spec: request.Spec, Unresolved: unresolved, Files: files}, err
}

func classes(path string) (answer, error) {
	found := answer{Classes: map[string]*oci.LinuxBlockIO{}}
	if err := blockio.SetConfigFromFile(path, false); err != nil {
		return found, err
	}
	for _, name := range blockio.GetClasses() {
		limits, err := blockio.OciLinuxBlockIO(name)
		if err != nil {
			return found, err
		}
		found.Classes[name] = limits
	}
	return found, nil
}
