// Command streamclient drives a streaming server with the clients that kubectl, crictl and the kubelet use.
//
//	streamclient exec -url URL [-transport spdy|websocket] [-protocols LIST] [-stdin] [-tty] [-sizes 80x24,100x30] [-await TEXT]
//	streamclient portforward -url URL [-transport spdy|websocket] -ports 0:8080
//
// exec copies its own stdin, stdout and stderr and exits with the remote code; any other error goes to stderr and
// exits with 250. portforward prints one "Forwarding from ..." line a port and ends when its stdin ends.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

const otherError = 250

type options struct {
	url, transport, protocols, method, sizes, await, ports string
	stdin, tty                                             bool
}

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("usage: streamclient exec|portforward -url URL ..."))
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.url, "url", "", "streaming URL")
	flags.StringVar(&o.transport, "transport", "spdy", "spdy or websocket")
	flags.StringVar(&o.protocols, "protocols", "", "protocols to offer, comma-separated; empty: client-go's own choice")
	flags.StringVar(&o.method, "method", "POST", "HTTP method for SPDY")
	flags.StringVar(&o.sizes, "sizes", "", "terminal sizes to send, e.g. 80x24,100x30")
	flags.StringVar(&o.ports, "ports", "", "LOCAL:REMOTE pairs")
	flags.BoolVar(&o.stdin, "stdin", false, "send stdin")
	flags.BoolVar(&o.tty, "tty", false, "ask for a terminal")
	flags.StringVar(&o.await, "await", "", "text in the output after which the sizes behind the first are sent")
	_ = flags.Parse(os.Args[2:])

	config := &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	var err error
	switch os.Args[1] {
	case "exec":
		err = runExec(config, o)
	case "portforward":
		err = runPortForward(config, o)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		os.Exit(exit.Code)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "streamclient:", err)
	os.Exit(otherError)
}

func executor(config *rest.Config, o options) (remotecommand.Executor, error) {
	var protocols []string
	if o.protocols != "" {
		protocols = strings.Split(o.protocols, ",")
	}
	if o.transport == "websocket" {
		if protocols == nil {
			return remotecommand.NewWebSocketExecutor(config, http.MethodGet, o.url)
		}
		return remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, o.url, protocols...)
	}
	target, err := url.Parse(o.url)
	if err != nil {
		return nil, err
	}
	if protocols == nil {
		return remotecommand.NewSPDYExecutor(config, o.method, target)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, o.method, target, protocols...)
}

// awaited passes output on, and closes seen once the text was in it.
type awaited struct {
	text  []byte
	seen  chan struct{}
	tail  []byte
	found bool
}

func (a *awaited) Write(data []byte) (int, error) {
	a.tail = append(a.tail, data...)
	if !a.found && bytes.Contains(a.tail, a.text) {
		a.found = true
		close(a.seen)
	}
	a.tail = a.tail[max(0, len(a.tail)-len(a.text)):]
	return os.Stdout.Write(data)
}

// queue hands out the sizes of -sizes, those behind the first once the output has said so, and then none.
type queue struct {
	sizes []remotecommand.TerminalSize
	seen  chan struct{}
	first bool
}

func (q *queue) Next() *remotecommand.TerminalSize {
	if len(q.sizes) == 0 {
		return nil
	}
	if q.first {
		<-q.seen
	}
	q.first = true
	size := q.sizes[0]
	q.sizes = q.sizes[1:]
	return &size
}

func runExec(config *rest.Config, o options) error {
	command, err := executor(config, o)
	if err != nil {
		return err
	}
	output := &awaited{text: []byte(o.await), seen: make(chan struct{})}
	stream := remotecommand.StreamOptions{Stdout: output, Tty: o.tty}
	if o.stdin {
		stream.Stdin = os.Stdin
	}
	if !o.tty {
		stream.Stderr = os.Stderr
	}
	if o.sizes != "" {
		sizes := &queue{seen: output.seen}
		for _, text := range strings.Split(o.sizes, ",") {
			var size remotecommand.TerminalSize
			if _, err := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); err != nil {
				return fmt.Errorf("size %q: %w", text, err)
			}
			sizes.sizes = append(sizes.sizes, size)
		}
		stream.TerminalSizeQueue = sizes
	}
	return command.StreamWithContext(context.Background(), stream)
}

func dialer(config *rest.Config, o options) (httpstream.Dialer, error) {
	target, err := url.Parse(o.url)
	if err != nil {
		return nil, err
	}
	if o.transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(target, config)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, o.method, target), nil
}

func runPortForward(config *rest.Config, o options) error {
	made, err := dialer(config, o)
	if err != nil {
		return err
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	addresses, ports := []string{"127.0.0.1"}, strings.Split(o.ports, ",")
	forwarder, err := portforward.NewOnAddresses(made, addresses, ports, stop, ready, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}
