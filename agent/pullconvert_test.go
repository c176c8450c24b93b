package agent

import (
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/stream"
)

const convertedLine = "image converted for the next pull"

// referrers returns how many artifacts lie beside the world's image in its registry.
func (w *world) referrers() int {
	w.t.Helper()
	tag, err := name.ParseReference(w.ref)
	must(w.t, err)
	desc, err := remote.Head(tag)
	must(w.t, err)
	index, err := remote.Referrers(tag.Context().Digest(desc.Digest.String()))
	must(w.t, err)
	m, err := index.IndexManifest()
	must(w.t, err)
	return len(m.Manifests)
}

// A first pull waits for the block image, if that may be.
func TestPullWaitsForItsConversion(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	cfg.Convert, cfg.ConvertWait = "wait", Duration{20 * time.Second}
	n := startNode(t, cfg)
	assertSame(t, n.mount(w.ref), w.files)
	if !strings.Contains(n.log.String(), convertedLine) {
		t.Error("a block image came from somewhere else")
	}
}

// A conversion that takes longer than a pull may wait does not hold it up.
func TestPullDoesNotWaitForever(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	cfg.Convert, cfg.ConvertWait = "wait", Duration{300 * time.Millisecond}
	n := startNode(t, cfg)
	hold := make(chan struct{})
	w.fail(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			<-hold
		}
		return false
	})
	begin := time.Now()
	_, err := n.Mount(t.Context(), w.ref, t.TempDir())
	if took := time.Since(begin); err == nil || took < cfg.ConvertWait.Duration || took > 3*time.Second {
		t.Errorf("%v after %v, want an error after %v", err, took, cfg.ConvertWait)
	}
	close(hold)
	waitFor(t, "conversion", func() bool { return strings.Contains(n.log.String(), convertedLine) })
	assertSame(t, n.mount(w.ref), w.files)
}

// What a client pulls through the proxy is converted from what came for it: the registry is read once.
func TestProxiedImageIsConverted(t *testing.T) {
	w := newWorld(t, twoLayers())
	reads := w.count()
	cfg := proxyConfig(t, w.url)
	cfg.Convert = "background"
	n := startNode(t, cfg)
	if _, err := pullAll(t, cfg.Proxy.Listen+"/app:v1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "conversion", func() bool { return strings.Contains(n.log.String(), convertedLine) })
	reads.check(t, 1)
	assertSame(t, n.mount(w.ref), w.files)
	reads.check(t, 1)
	if n := w.referrers(); n != 0 {
		t.Errorf("%d artifacts were pushed", n)
	}
}

// What a node converted lies beside its source afterwards, for whoever trusts it; a registry that takes nothing is no failure.
func TestConvertedImageIsPushed(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	cfg.Convert, cfg.ConvertWait, cfg.ConvertPush = "wait", Duration{20 * time.Second}, true
	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return false
		}
		http.Error(rw, `{"errors":[{"code":"DENIED"}]}`, http.StatusForbidden)
		return true
	})
	n := startNode(t, cfg)
	assertSame(t, n.mount(w.ref), w.files)
	if lines := strings.Count(n.log.String(), "not pushed"); lines != 1 || w.referrers() != 0 {
		t.Errorf("%d lines say that the push was refused, %d artifacts are there", lines, w.referrers())
	}
	w.fail(nil)

	again := testConfig(t)
	again.Convert, again.ConvertWait, again.ConvertPush = cfg.Convert, cfg.ConvertWait, true
	must(t, n.stop())
	n = startNode(t, again)
	assertSame(t, n.mount(w.ref), w.files)
	if w.referrers() == 0 {
		t.Fatal("there is no block image beside the source")
	}
	fresh := testConfig(t)
	must(t, os.MkdirAll(fresh.Root, 0o700))
	copyFile(t, again.KeyFile(), fresh.KeyFile())
	assertSame(t, startNode(t, fresh).mount(w.ref), w.files)
}

// A private image that a client pulled with credentials which the node has not is converted from what came for the client, and its
// credentials are used for nothing else.
func TestPrivateImageOfAClientIsConverted(t *testing.T) {
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	w := newWorld(t, twoLayers())
	reads := w.count()
	front := locked(t, w, false)
	cfg := proxyConfig(t, strings.TrimPrefix(front.URL, "http://"))
	cfg.Convert = "background"
	n := startNode(t, cfg)
	if _, err := pullAll(t, cfg.Proxy.Listen+"/app:v1", remote.WithAuth(&authn.Basic{Username: "alice", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "conversion", func() bool { return strings.Contains(n.log.String(), convertedLine) })
	reads.check(t, 1)
	if strings.Contains(n.log.String(), "secret") {
		t.Error("the log has the client's password")
	}
}

// naming has images' discovery hear that the cluster made a block image, and returns what else the schedulers hear.
func naming(images *Images, made api.Conversion) *ledger {
	made.State = api.ConversionDone
	l := &ledger{answers: []api.Conversion{made}}
	images.discovery.made = newMade(&cluster{cfg: Config{Log: slog.New(slog.DiscardHandler)}, host: new(stream.Host)}, l, newMetrics())
	return l
}

// A block image in the registry that nobody here trusts is used if the schedulers name it as the cluster's, and only that one.
func TestClusterNamesAPushedBlockImage(t *testing.T) {
	w := newWorld(t, twoLayers())
	_, stranger, err := ed25519.GenerateKey(nil)
	must(t, err)
	made, other, repo := digest.FromBytes(w.convert(stranger, nil).Manifest), digest.FromString("another"), w.url+"/app"
	copied := w.url + "/copy:v1"
	w.push(copied, w.files)
	for name, c := range map[string]struct {
		ref   string
		named api.Conversion
		found bool
		miss  bool // the schedulers hear that it is gone
	}{
		"beside its source":              {w.ref, api.Conversion{Image: made, Pushed: repo}, true, false},
		"of a source in two places":      {copied, api.Conversion{Image: made, Pushed: repo}, true, false},
		"another one":                    {w.ref, api.Conversion{Image: other, Pushed: repo}, false, true},
		"in a registry of somebody else": {copied, api.Conversion{Image: made, Pushed: "other.example/app"}, false, false},
		"nowhere":                        {copied, api.Conversion{Image: made, Pushed: "x"}, false, false},
	} {
		images := runImages(t, testConfig(t))
		l := naming(images, c.named)
		if _, err := images.Open(t.Context(), c.ref); (err == nil) != c.found || err != nil && !errors.Is(err, blockfmt.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if got := l.asked[len(l.asked)-1].Missing == c.named.Image; got != c.miss {
			t.Errorf("%s: the schedulers hear that it is gone: %v, want %v", name, got, c.miss)
		}
	}
}

// A block image that an agent of the cluster holds is used where the registry has none. If it cannot be had there is none, and the image is
// unpacked.
func TestClusterHoldsABlockImage(t *testing.T) {
	w := newWorld(t, twoLayers())
	_, other, err := ed25519.GenerateKey(nil)
	must(t, err)
	src, err := convert.Open(t.Context(), w.ref, "", convert.Registry{})
	must(t, err)
	r, err := convert.Convert(t.Context(), src, convert.Options{Key: other})
	must(t, err)
	defer r.Close()
	dir := t.TempDir()
	must(t, r.WriteLayout(dir, ""))
	for name, c := range map[string]struct {
		named digest.Digest
		found bool
	}{"it is there": {digest.FromBytes(r.Manifest), true}, "it is gone": {digest.FromString("gone"), false}} {
		images := runImages(t, testConfig(t))
		naming(images, api.Conversion{Image: c.named, Holder: &api.Peer{ID: "holder"}})
		registry := images.discovery.place
		images.discovery.place = func(o origin) (place, error) {
			if o.Cluster == src.Descriptor.Digest {
				return layout{dir}, nil
			}
			return registry(o)
		}
		if _, err := images.Open(t.Context(), w.ref); (err == nil) != c.found || err != nil && !errors.Is(err, blockfmt.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		for _, im := range images.images {
			if im.origin.Cluster != src.Descriptor.Digest || im.origin.Layout != "" {
				t.Errorf("%s: it is said to be at %+v", name, im.origin)
			}
		}
	}
}

// Whom the agent trusts is its configuration's word.
func TestClusterIsTrustedIfConfigured(t *testing.T) {
	for _, trust := range []bool{true, false} {
		cfg := testConfig(t)
		cfg.Schedulers, cfg.TrustCluster = []string{"https://127.0.0.1:1"}, trust
		if images := runImages(t, cfg); (images.discovery.made != nil) != trust {
			t.Errorf("with trust_cluster = %v what the cluster made is used: %v", trust, !trust)
		}
	}
}
