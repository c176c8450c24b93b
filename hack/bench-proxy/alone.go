package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/nodelab"
)

const repository = "bench"

// alone is a registry proxy on loopback in front of a docker-registry that has an image with one layer.
type alone struct {
	lab   *nodelab.Lab
	proxy *nodelab.Process
	base  string // URL of the proxy
	file  string // what the layer is
	image v1.Image
	layer v1.Hash
}

// startAlone starts both, with a layer of size bytes that do not compress.
func (b *bench) startAlone(ctx context.Context, size int64) (_ *alone, err error) {
	a := new(alone)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.lab, err = nodelab.Start(ctx, nodelab.Config{Xylem: b.Xylem}); err != nil {
		return nil, err
	}
	if err := os.Mkdir(a.lab.Path("www"), 0o755); err != nil {
		return nil, err
	}
	a.file = a.lab.Path("www/blob")
	layer, err := newLayer(a.file, size)
	if err != nil {
		return nil, err
	}
	a.layer = layer.digest
	if a.image, err = mutate.AppendLayers(empty.Image, layer); err != nil {
		return nil, err
	}
	if _, err := a.lab.Push(ctx, repository+":1", a.image); err != nil {
		return nil, err
	}
	return a, a.startProxy(ctx, b.Xylem)
}

func (a *alone) close() error {
	var errs []error
	if a.proxy != nil {
		errs = append(errs, a.proxy.Stop())
	}
	if a.lab != nil {
		errs = append(errs, a.lab.Close())
	}
	return errors.Join(errs...)
}

// startProxy runs `xylem proxy` with nothing kept.
func (a *alone) startProxy(ctx context.Context, xylem string) error {
	listen, err := freeAddress()
	if err != nil {
		return err
	}
	cmd := exec.Command(xylem, "--root", a.lab.Path("root"), "--state", a.lab.Path("state"), "proxy", "--admin", "", "--listen", listen, "--default-upstream", a.lab.Host())
	a.base = "http://" + listen
	if a.proxy, err = a.run(ctx, "proxy", cmd, a.base+"/v2/"); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// run runs a server until it answers at url.
func (a *alone) run(ctx context.Context, log string, cmd *exec.Cmd, url string) (*nodelab.Process, error) {
	p, err := nodelab.StartProcess(here{}, a.lab.Path(log+".log"), cmd)
	if err != nil {
		return nil, err
	}
	err = p.Poll(ctx, 20*time.Second, func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}

// here is the place of what is started.
type here struct{}

func (here) Start(cmd *exec.Cmd) error { return cmd.Start() }

func (here) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// blobURL is the layer at a server of the registry's API.
func (a *alone) blobURL(base string) string {
	return base + "/v2/" + repository + "/blobs/" + a.layer.String()
}

// registryURL is where the registry is.
func (a *alone) registryURL() string { return "http://" + a.lab.Host() }

// freeAddress is one on loopback at which nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// layer is a v1.Layer of noise in a file: what it holds is never unpacked.
type layer struct {
	file   string
	size   int64
	digest v1.Hash
}

func newLayer(file string, size int64) (*layer, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	hash := sha256.New()
	noise := rand.NewChaCha8(sha256.Sum256([]byte(repository)))
	if _, err := io.CopyN(io.MultiWriter(f, hash), noise, size); err != nil {
		return nil, err
	}
	digest, err := v1.NewHash(fmt.Sprintf("sha256:%x", hash.Sum(nil)))
	return &layer{file, size, digest}, errors.Join(err, f.Sync())
}

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return os.Open(l.file) }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.file) }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }

// pull reads all of the image through the proxy, verified.
func (a *alone) pull(ctx context.Context) error {
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	return containerdtest.ReadImage(ctx, strings.TrimPrefix(a.base, "http://")+"/"+repository+":1", transport)
}
