package trees

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/containerdtest"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/scheduler/api"
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
		s.data = data // the last layer hides the others' file
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
		if err := s.verified(t.Context(), h); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
}

// verified reads all layers on a host, and compares digests.
func (s *spread) verified(ctx context.Context, h *lab.Host) error {
	transport := &http.Transport{DialContext: h.DialContext}
	defer transport.CloseIdleConnections()
	return containerdtest.ReadImage(ctx, lab.Proxied(s.ref), transport)
}

// TestPlainRootIsKilled kills the agent that reads a layer from the registry when half of it has come: the clients of all others get the
// layer without noticing, and somebody else reads the rest.
func TestPlainRootIsKilled(t *testing.T) {
	l := up(t)
	s := newPlain(t, l, "killed", 3*imageBytes)
	var g errgroup.Group
	results := make([]error, len(l.Hosts()))
	for i, h := range l.Hosts() {
		g.Go(func() error { results[i] = s.verified(t.Context(), h); return nil })
	}
	var root *lab.Host
	eventually(t, patience, "a root", func() (err error) { root, err = s.plainRoot(t.Context()); return err })
	eventually(t, patience, "half of the layer has left the registry", func() error {
		now, err := l.Registry().Traffic(t.Context())
		if sent := now.Sub(s.before).Sent; err == nil && int64(sent) < s.stored/2 {
			err = fmt.Errorf("%d bytes of %d", sent, s.stored)
		}
		return err
	})
	must(t, root.Node.KillAgent())
	must(t, g.Wait())
	for i, h := range l.Hosts() {
		switch {
		case h == root && results[i] == nil:
			t.Error("the root's client had all before the agent was killed: nothing was tested")
		case h != root && results[i] != nil:
			t.Errorf("%s, after %s was killed: %v\n%s", h.Name, root.Name, results[i], h.Node.AgentLogTail())
		}
	}
	s.egress(t, 2)
	must(t, root.Restart(t.Context()))
	s.genuine(t, l.Hosts()...)
	s.egress(t, 2)
}

// plainRoot returns the host that reads the image's only layer from the registry in stripe 0, once all are in its tree.
func (s *spread) plainRoot(ctx context.Context) (*lab.Host, error) {
	on := s.Hosts()[0]
	out, err := on.Node.Xylem(ctx, "tree", "--output", "json")
	if err != nil {
		return nil, err
	}
	var trees []api.TreeInfo
	if err := json.Unmarshal([]byte(out), &trees); err != nil {
		return nil, err
	}
	for _, info := range trees {
		if out, err = on.Node.Xylem(ctx, "tree", info.Image.String(), "--output", "json"); err != nil {
			return nil, err
		}
		var tree api.Tree
		if err := json.Unmarshal([]byte(out), &tree); err != nil {
			return nil, err
		}
		if err := sound(tree, s.Hosts()); err != nil {
			return nil, err
		}
		for _, h := range s.Hosts() {
			if slices.ContainsFunc(tree.Members, func(m api.TreeMember) bool { return is(m, h) && rootOf(tree, m) }) {
				return h, nil
			}
		}
	}
	return nil, fmt.Errorf("no root in %d trees", len(trees))
}
