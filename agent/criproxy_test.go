package agent

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pulls is an image service that notes what it is asked to pull.
type pulls struct {
	runtime.UnimplementedImageServiceServer
	images []string
}

func (p *pulls) PullImage(_ context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	p.images = append(p.images, req.GetImage().GetImage())
	return &runtime.PullImageResponse{ImageRef: "pulled"}, nil
}

// TestCredentialsOfThePullReadTheBlocks has a registry that wants a password, which only the kubelet's pull request has.
func TestCredentialsOfThePullReadTheBlocks(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	w.convert(nodeKey(t, cfg), nil)
	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		if user, password, ok := r.BasicAuth(); ok && user == "kube" && password == "secret" {
			return false
		}
		rw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		rw.WriteHeader(http.StatusUnauthorized)
		return true
	})
	containerd := &pulls{}
	cfg.CRI = filepath.Join(t.TempDir(), "cri.sock")
	l, err := listenUnix(cfg.CRI)
	must(t, err)
	server := grpc.NewServer()
	runtime.RegisterImageServiceServer(server, containerd)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { server.Stop(); must(t, <-served) }()

	n := startNode(t, cfg)
	if _, err := n.Mount(t.Context(), w.ref, t.TempDir()); err == nil {
		t.Fatal("mounted without credentials")
	}
	conn, err := grpc.NewClient("unix://"+cfg.CRISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	resp, err := runtime.NewImageServiceClient(conn).PullImage(t.Context(), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: w.ref}, Auth: &runtime.AuthConfig{Username: "kube", Password: "secret"}})
	must(t, err)
	if resp.ImageRef != "pulled" || len(containerd.images) != 1 || containerd.images[0] != w.ref {
		t.Errorf("containerd was asked for %v, answered %v", containerd.images, resp)
	}
	assertSame(t, n.mount(w.ref), w.files)
	if strings.Contains(n.log.String(), "secret") {
		t.Error("the password is in the log")
	}
}
