// Command nriplugin is a real NRI plugin, built with the stub of the protocol's own Go module, for Bulkhead's tests:
// flags choose what it answers, and everything it hears is a JSON line in its log. With -merge it is the runtime's side
// of that module instead: it reads requests and plugins' answers and prints what the module makes of them.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/adaptation/builtin"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// pairs is a flag of the form EVENT=VALUE that may be given several times.
type pairs map[string]string

func (p pairs) String() string { return fmt.Sprint(map[string]string(p)) }

func (p pairs) Set(value string) error {
	key, rest, found := strings.Cut(value, "=")
	if !found {
		return errors.New("EVENT=VALUE expected")
	}
	p[key] = rest
	return nil
}

type plugin struct {
	stub    stub.Stub
	log     *os.File
	lock    sync.Mutex
	name    string
	events  string
	slow    pairs
	hold    pairs
	fail    pairs
	answers pairs
	reject  string
	updates string
}

// hear writes one line, then does what the flags say about the event: wait, or fail.
func (p *plugin) hear(event string, parts map[string]any) error {
	line := map[string]any{"event": event, "plugin": p.name, "time": time.Now().UnixNano()}
	for name, part := range parts {
		if message, ok := part.(proto.Message); ok {
			raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
			if err != nil {
				return err
			}
			part = json.RawMessage(raw)
		}
		line[name] = part
	}
	raw, err := json.Marshal(line)
	if err != nil {
		return err
	}
	p.lock.Lock()
	_, err = p.log.Write(append(raw, '\n'))
	p.lock.Unlock()
	if err != nil {
		return err
	}
	if wait, ok := p.slow[event]; ok {
		duration, err := time.ParseDuration(wait)
		if err != nil {
			return err
		}
		time.Sleep(duration)
	}
	if path, ok := p.hold[event]; ok {
		for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if text, ok := p.fail[event]; ok {
		if text == "exit" {
			os.Exit(3)
		}
		return errors.New(text)
	}
	return nil
}

// answer fills a message from the JSON that -answer gave for the event.
func (p *plugin) answer(event string, message proto.Message) error {
	text, ok := p.answers[event]
	if !ok {
		return nil
	}
	return protojson.Unmarshal([]byte(text), message)
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (api.EventMask, error) {
	err := p.hear("Configure", map[string]any{
		"config": config, "runtime": runtime, "version": version, "nri": p.stub.RuntimeNRIVersion(),
		"registration_timeout": p.stub.RegistrationTimeout().String(), "request_timeout": p.stub.RequestTimeout().String(),
	})
	if err != nil || p.events == "" {
		return 0, err
	}
	return api.ParseEventMask(p.events)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	podIDs, containerIDs, states := []string{}, []string{}, map[string]string{}
	for _, pod := range pods {
		podIDs = append(podIDs, pod.GetId())
	}
	for _, container := range containers {
		containerIDs = append(containerIDs, container.GetId())
		states[container.GetId()] = container.GetState().String()
	}
	if len(states) > 100 {
		states = nil
	}
	err := p.hear("Synchronize", map[string]any{"pods": podIDs, "containers": containerIDs, "states": states})
	response := &api.SynchronizeResponse{}
	if err == nil {
		err = p.answer("Synchronize", response)
	}
	if p.updates != "" {
		go p.update()
	}
	return response.Update, err
}

// update asks for unsolicited updates, and logs which of them failed.
func (p *plugin) update() {
	time.Sleep(200 * time.Millisecond)
	request := &api.UpdateContainersRequest{}
	if err := protojson.Unmarshal([]byte(p.updates), request); err != nil {
		panic(err)
	}
	failed, err := p.stub.UpdateContainers(request.Update)
	_ = p.hear("UpdateContainers", map[string]any{"response": &api.UpdateContainersResponse{Failed: failed}, "error": fmt.Sprint(err)})
}

func (p *plugin) Shutdown(context.Context) { _ = p.hear("Shutdown", nil) }

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("RunPodSandbox", map[string]any{"pod": pod})
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	return p.hear("UpdatePodSandbox", map[string]any{"pod": pod, "overhead": overhead, "resources": resources})
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("PostUpdatePodSandbox", map[string]any{"pod": pod})
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("StopPodSandbox", map[string]any{"pod": pod})
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.hear("RemovePodSandbox", map[string]any{"pod": pod})
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	response := &api.CreateContainerResponse{}
	if err := p.hear("CreateContainer", map[string]any{"pod": pod, "container": container}); err != nil {
		return nil, nil, err
	}
	err := p.answer("CreateContainer", response)
	return response.Adjust, response.Update, err
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear("PostCreateContainer", map[string]any{"pod": pod, "container": container})
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear("StartContainer", map[string]any{"pod": pod, "container": container})
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear("PostStartContainer", map[string]any{"pod": pod, "container": container})
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	response := &api.UpdateContainerResponse{}
	if err := p.hear("UpdateContainer", map[string]any{"pod": pod, "container": container, "resources": resources}); err != nil {
		return nil, err
	}
	// "self" is the container that is being updated.
	text := strings.ReplaceAll(p.answers["UpdateContainer"], `"self"`, `"`+container.GetId()+`"`)
	if text == "" {
		return nil, nil
	}
	err := protojson.Unmarshal([]byte(text), response)
	return response.Update, err
}

func (p *plugin) PostUpdateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear("PostUpdateContainer", map[string]any{"pod": pod, "container": container})
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	response := &api.StopContainerResponse{}
	if err := p.hear("StopContainer", map[string]any{"pod": pod, "container": container}); err != nil {
		return nil, err
	}
	err := p.answer("StopContainer", response)
	return response.Update, err
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear("RemoveContainer", map[string]any{"pod": pod, "container": container})
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	if err := p.hear("ValidateContainerAdjustment", map[string]any{"request": request}); err != nil {
		return err
	}
	if p.reject != "" {
		return errors.New(p.reject)
	}
	return nil
}

// settings is what a plugin started by the runtime gets instead of flags: the arguments, one a line of its file.
func settings(argument string) []string {
	if argument == "" {
		return nil
	}
	raw, err := os.ReadFile(argument)
	if err != nil {
		panic(err)
	}
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

func main() {
	p := &plugin{slow: pairs{}, hold: pairs{}, fail: pairs{}, answers: pairs{}}
	socket := flag.String("socket", api.DefaultSocketPath, "the runtime's socket")
	name := flag.String("name", "", "plugin name; from the environment if started by the runtime")
	index := flag.String("idx", "", "plugin index")
	file := flag.String("log", "/dev/null", "file of JSON lines")
	policy := flag.String("policy", "", "fail_request, keep_connected, or both with a comma")
	reconnect := flag.Bool("reconnect", false, "connect again, for ever, when the connection ends")
	merge := flag.Bool("merge", false, "be the runtime's side: merge what standard input says")
	flag.StringVar(&p.events, "events", "", "events to subscribe to, all without")
	flag.StringVar(&p.reject, "reject", "", "reject every adjustment for this reason")
	flag.StringVar(&p.updates, "unsolicited", "", "UpdateContainersRequest (JSON) to send once synchronized")
	flag.Var(p.slow, "slow", "EVENT=DURATION to wait before answering")
	flag.Var(p.hold, "hold", "EVENT=FILE that must be there before it is answered")
	flag.Var(p.fail, "fail", "EVENT=TEXT to fail with; the text exit ends the process")
	flag.Var(p.answers, "answer", "EVENT=JSON of the response message")
	arguments := os.Args[1:]
	if os.Getenv(api.PluginSocketEnvVar) != "" {
		arguments = settings(os.Args[0] + ".args")
	}
	if err := flag.CommandLine.Parse(arguments); err != nil {
		panic(err)
	}
	if *merge {
		oracle()
		return
	}
	var err error
	if p.log, err = os.OpenFile(*file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		panic(err)
	}
	for {
		err := p.run(*socket, *name, *index, *policy)
		_ = p.hear("Ended", map[string]any{"error": fmt.Sprint(err)})
		if !*reconnect {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *plugin) run(socket, name, index, policy string) error {
	options := []stub.Option{stub.WithSocketPath(socket)}
	if launched := os.Getenv(api.PluginNameEnvVar); launched != "" {
		name, index = launched, os.Getenv(api.PluginIdxEnvVar)
	} else {
		options = append(options, stub.WithPluginName(name), stub.WithPluginIdx(index))
	}
	if policy != "" {
		options = append(options, stub.WithFailurePolicy(&api.FailurePolicy{
			FailRequest: strings.Contains(policy, "fail_request"), KeepConnected: strings.Contains(policy, "keep_connected"),
		}))
	}
	made, err := stub.New(p, options...)
	if err != nil {
		return err
	}
	p.lock.Lock()
	p.stub, p.name = made, index+"-"+name
	p.lock.Unlock()
	return made.Run(context.Background())
}

// question is one line of the oracle's input. Exactly one of the requests is there.
type question struct {
	Create    json.RawMessage                   `json:"create"`
	Update    json.RawMessage                   `json:"update"`
	Stop      json.RawMessage                   `json:"stop"`
	Plugins   []struct{ Index, Name string }    `json:"plugins"`
	Answers   []json.RawMessage                 `json:"answers"`
	Validator *validator.DefaultValidatorConfig `json:"validator"`
}

// oracle answers one line of input with one line of output: {"response": …} or {"error": …}.
func oracle() {
	nrilog.Set(quiet{})
	input := bufio.NewReader(os.Stdin)
	for {
		raw, err := input.ReadBytes('\n')
		if err != nil {
			return
		}
		asked, line := &question{}, map[string]any{}
		if err := json.Unmarshal(raw, asked); err != nil {
			panic(err)
		}
		response, err := asked.relay()
		if err != nil {
			line["error"] = err.Error()
		} else {
			text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(response)
			if err != nil {
				panic(err)
			}
			line["response"] = json.RawMessage(text)
		}
		out, _ := json.Marshal(line)
		fmt.Println(string(out))
	}
}

func (q *question) relay() (proto.Message, error) {
	plugins := []*builtin.BuiltinPlugin{}
	for i, named := range q.Plugins {
		raw := q.Answers[i]
		plugins = append(plugins, &builtin.BuiltinPlugin{Base: named.Name, Index: named.Index, Handlers: builtin.BuiltinHandlers{
			CreateContainer: func(context.Context, *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
				response := &api.CreateContainerResponse{}
				return response, protojson.Unmarshal(raw, response)
			},
			UpdateContainer: func(context.Context, *api.UpdateContainerRequest) (*api.UpdateContainerResponse, error) {
				response := &api.UpdateContainerResponse{}
				return response, protojson.Unmarshal(raw, response)
			},
			StopContainer: func(context.Context, *api.StopContainerRequest) (*api.StopContainerResponse, error) {
				response := &api.StopContainerResponse{}
				return response, protojson.Unmarshal(raw, response)
			},
		}})
	}
	sync := func(ctx context.Context, tell adaptation.SyncCB) error { _, err := tell(ctx, nil, nil); return err }
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil }
	options := []adaptation.Option{
		adaptation.WithBuiltinPlugins(plugins...), adaptation.WithDisabledExternalConnections(),
		adaptation.WithPluginPath("/nonexistent"), adaptation.WithDefaultValidator(q.Validator),
	}
	runtime, err := adaptation.New("oracle", "v1", sync, update, options...)
	if err != nil {
		panic(err)
	}
	if err := runtime.Start(); err != nil {
		panic(err)
	}
	defer runtime.Stop()
	ctx := context.Background()
	switch {
	case q.Create != nil:
		request := &api.CreateContainerRequest{}
		must(protojson.Unmarshal(q.Create, request))
		return runtime.CreateContainer(ctx, request)
	case q.Update != nil:
		request := &api.UpdateContainerRequest{}
		must(protojson.Unmarshal(q.Update, request))
		response, err := runtime.UpdateContainer(ctx, request)
		if err == nil && response.Update[len(response.Update)-1] == nil {
			response.Update = response.Update[:len(response.Update)-1]
		}
		return response, err
	default:
		request := &api.StopContainerRequest{}
		must(protojson.Unmarshal(q.Stop, request))
		return runtime.StopContainer(ctx, request)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// quiet keeps the module's own log lines out of the output.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}
