package containerdtest

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/agent"
)

// serveProxy runs the registry proxy until the test ends and returns its address.
func serveProxy(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := agent.Default()
	cfg.Root, cfg.State, cfg.Admin = filepath.Join(t.TempDir(), "root"), t.TempDir(), ""
	cfg.Proxy.Listen, cfg.Proxy.DefaultUpstream = l.Addr().String(), ""
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := l.Close(); err != nil { // for the proxy to take
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.RunProxy(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cfg.Proxy.Listen
}

// TestPullThroughTheProxy has both containerds, with one hosts.toml for all registries, pull by ctr and by the CRI. The registry
// is read once, whoever pulls.
func TestPullThroughTheProxy(t *testing.T) {
	src, proxy := push(t), serveProxy(t)
	before := src.downloads()
	for version, opts := range versions(t) {
		t.Run(version, func(t *testing.T) {
			opts.Mirror, opts.CRI = proxy, true
			d := start(t, opts)
			run(t, d.Ctr(t.Context(), "image", "pull", "--hosts-dir", d.HostsDir(), src.ref))
			out := run(t, d.Ctr(t.Context(), "run", "--rm", "--net-host", src.ref, "c", "/bin/program", "ctr"))
			if !strings.Contains(out, "hello from ctr") {
				t.Errorf("it printed %q", out)
			}
			_, c := connect(t, d)
			images := cri.NewImageServiceClient(c.Conn().(grpc.ClientConnInterface))
			if _, err := images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: src.ref}}); err != nil {
				t.Errorf("CRI: %v\n%s", err, d.logTail())
			}
		})
	}
	if n := src.downloads() - before; n != 3 {
		t.Errorf("%d blobs were read of the registry, want config and two layers once", n)
	}
}
