package clienttest

import (
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/hack/containerdtest"
)

// TestContainerd has both containerds, with one hosts.toml for all registries, pull by ctr and by the CRI, for this platform and another. The
// registry is read once, whoever pulls.
func TestContainerd(t *testing.T) {
	o, i := serveOrigin(t), newImage(t)
	i.push(t, o)
	proxy := serveProxy(t, "")
	two, err := containerdtest.Build(t.Context(), filepath.Join("..", "cache"))
	must(t, err)
	for version, opts := range map[string]containerdtest.Options{"1.6": {}, "2.4": two} {
		t.Run(version, func(t *testing.T) {
			opts.Mirror, opts.CRI = proxy, true
			d := startContainerd(t, opts)
			ref := o.host + "/app:1"
			pullByCRI(t, d, ref) // first, because what ctr has it would take over
			run(t, d.Ctr(t.Context(), "image", "pull", "--hosts-dir", d.HostsDir(), ref))
			if out := run(t, d.Ctr(t.Context(), "run", "--rm", "--net-host", ref, "c", "/bin/program")); out != says {
				t.Errorf("it printed %q", out)
			}
			run(t, d.Ctr(t.Context(), "image", "pull", "--platform", other.String(), "--hosts-dir", d.HostsDir(), ref))
		})
	}
	o.wasRead(t, append(i.own, i.others...)...)
}

// startContainerd runs a daemon until the test ends.
func startContainerd(t *testing.T, opts containerdtest.Options) *containerdtest.Daemon {
	t.Helper()
	opts.Dir = shortDir(t)
	d, err := containerdtest.Start(t.Context(), opts)
	must(t, err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func pullByCRI(t *testing.T, d *containerdtest.Daemon, ref string) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	images := cri.NewImageServiceClient(conn)
	pulled, err := images.PullImage(t.Context(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	must(t, err)
	status, err := images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: pulled.ImageRef}})
	if err != nil || status.Image == nil {
		t.Errorf("the kubelet does not find %s: %v, %v", pulled.ImageRef, status, err)
	}
}
