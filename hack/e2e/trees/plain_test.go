package trees

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/lab"
)

// TestPlain lets hosts pull an image that nobody converted, through the registry proxies of their nodes.
func TestPlain(t *testing.T) {
	l := up(t)
	s := newPlain(t, l, "plain", 4<<20, 12<<20)
	s.pull(t, l.Hosts()...)
	s.egress(t, 1.2) // of 33 blocks, each stripe of a layer may have one on its way when its root is replaced
	s.genuine(t, l.Hosts()...)
	s.egress(t, 1.2)
}

// newPlain puts an image with a layer of noise for each size into the registry.
func newPlain(t *testing.T, l *lab.Lab, name string, sizes ...int) *spread {
	t.Helper()
	s := &spread{Lab: l, name: name}
	noise := rand.NewChaCha8(sha256.Sum256([]byte(name)))
	var layers []map[string][]byte
	for _, size := range sizes {
		data := make([]byte, size)
		_, _ = noise.Read(data)
		layers = append(layers, map[string][]byte{"noise": data})
	}
	image, err := containerdtest.Image([]string{"/noise"}, layers...)
	must(t, err)
	manifest, err := image.Manifest()
	must(t, err)
	for _, layer := range manifest.Layers {
		s.stored += layer.Size
	}
	s.ref, err = l.Services.Push(t.Context(), name+":1", image)
	must(t, err)
	s.before, err = l.Registry().Traffic(t.Context())
	must(t, err)
	return s
}

// pull has hosts download the image through their proxies at the same moment.
func (s *spread) pull(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	all, err := s.DownloadAll(t.Context(), lab.Proxied(s.ref))
	if err != nil {
		for _, h := range hosts {
			err = fmt.Errorf("%w\n%s: %s", err, h.Name, h.Node.AgentLogTail())
		}
		t.Fatal(err)
	}
	for i, d := range all {
		t.Logf("%s has %d bytes after %v", s.Hosts()[i].Name, d.Bytes, d.Time)
	}
}

// genuine pulls the image with a client that compares digests.
func (s *spread) genuine(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		transport := &http.Transport{DialContext: h.DialContext}
		defer transport.CloseIdleConnections()
		tag, err := name.ParseReference(lab.Proxied(s.ref), name.Insecure)
		must(t, err)
		image, err := remote.Image(tag, remote.WithContext(t.Context()), remote.WithTransport(transport))
		must(t, err)
		layers, err := image.Layers()
		must(t, err)
		for _, layer := range layers {
			body, err := layer.Compressed()
			must(t, err)
			if _, err := io.Copy(io.Discard, body); err != nil {
				t.Errorf("%s: %v", h.Name, err)
			}
			must(t, body.Close())
		}
	}
}
