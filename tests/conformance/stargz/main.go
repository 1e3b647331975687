// The stargz snapshotter as a proxy plugin of its own process, and the tool that makes layers it can mount lazily;
// also containerd's overlayfs snapshotter, which takes no layer by itself.
//
//	stargz serve SOCKET ROOT      serve the snapshots API on SOCKET; registries on loopback are asked over plain HTTP
//	stargz overlayfs SOCKET ROOT  serve containerd's overlayfs snapshotter on SOCKET
//	stargz convert IN OUT         write the tar IN as an eStargz blob to OUT and its TOC digest to standard output
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: stargz serve|overlayfs SOCKET ROOT | stargz convert IN OUT")
	}
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2], os.Args[3], lazy)
	case "overlayfs":
		err = serve(os.Args[2], os.Args[3], plain)
	case "convert":
		err = convert(os.Args[2], os.Args[3])
	default:
		err = fmt.Errorf("no such command: %s", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

func lazy(ctx context.Context, root string) (snapshots.Snapshotter, error) {
	// Nothing is fetched that no file asks for, so that a test can tell a lazy layer by what the registry served.
	settings := &service.Config{Config: config.Config{NoPrefetch: true, NoBackgroundFetch: true}}
	return service.NewStargzSnapshotterService(ctx, root, settings)
}

func plain(_ context.Context, root string) (snapshots.Snapshotter, error) {
	return overlay.NewSnapshotter(root)
}

func serve(socket, root string, open func(context.Context, string) (snapshots.Snapshotter, error)) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	snapshotter, err := open(ctx, root)
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		server.Stop()
	}()
	return server.Serve(listener)
}

func convert(in, out string) error {
	tar, err := os.Open(in)
	if err != nil {
		return err
	}
	defer tar.Close()
	info, err := tar.Stat()
	if err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, info.Size()))
	if err != nil {
		return err
	}
	defer blob.Close()
	made, err := os.Create(out)
	if err != nil {
		return err
	}
	defer made.Close()
	if _, err := io.Copy(made, blob); err != nil {
		return err
	}
	fmt.Println(blob.TOCDigest())
	return made.Close()
}
