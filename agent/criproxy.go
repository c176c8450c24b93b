package agent

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/google/go-containerregistry/pkg/name"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/xylem-project/xylem/agent/registry"
)

// criProxy is the CRI image service that a kubelet talks to in place of containerd's (--image-service-endpoint). It hands every
// call on and keeps the credentials that come with a pull: they are the ones that the image's blocks are fetched with.
type criProxy struct {
	runtime.UnimplementedImageServiceServer
	next runtime.ImageServiceClient
	keep func(host string, cred registry.Credentials)
}

func (p *criProxy) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	if auth := req.GetAuth(); auth != nil {
		ref, err := name.ParseReference(req.GetImage().GetImage())
		if err == nil { // containerd says what is wrong with it otherwise
			p.keep(ref.Context().RegistryStr(), registry.Credentials{
				Username: auth.GetUsername(), Password: auth.GetPassword(), IdentityToken: auth.GetIdentityToken(), RegistryToken: auth.GetRegistryToken()})
		}
	}
	return p.next.PullImage(ctx, req)
}

func (p *criProxy) ListImages(ctx context.Context, req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	return p.next.ListImages(ctx, req)
}

func (p *criProxy) ImageStatus(ctx context.Context, req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	return p.next.ImageStatus(ctx, req)
}

func (p *criProxy) RemoveImage(ctx context.Context, req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	return p.next.RemoveImage(ctx, req)
}

func (p *criProxy) ImageFsInfo(ctx context.Context, req *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	return p.next.ImageFsInfo(ctx, req)
}

// serveCRI serves the image service on l in front of the one at the unix socket next, until ctx ends.
func serveCRI(ctx context.Context, l net.Listener, next string, keep func(string, registry.Credentials)) error {
	conn, err := grpc.NewClient("unix://"+next, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return errors.Join(fmt.Errorf("CRI image service at %s: %w", next, err), l.Close())
	}
	defer conn.Close()
	server := grpc.NewServer()
	runtime.RegisterImageServiceServer(server, &criProxy{next: runtime.NewImageServiceClient(conn), keep: keep})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		server.Stop() // a pull may take minutes; containerd goes on with it
		<-done
		return nil
	}
}
