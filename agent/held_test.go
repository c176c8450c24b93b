package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/stream"
)

// peerAgent is what an agent in a cluster has for block images that the cluster made.
type peerAgent struct {
	*cluster
	t    *testing.T
	stop func()
	lost int // images that nobody holds
}

// newPeerAgent returns an agent whose schedulers are a ledger, and serves its peers until the test ends.
func newPeerAgent(t *testing.T, l *ledger, change func(*Config)) *peerAgent {
	t.Helper()
	cfg := testConfig(t)
	cfg.Log, cfg.Listen = slog.New(slog.NewTextHandler(t.Output(), nil)), netip.MustParseAddrPort("127.0.0.1:0")
	if change != nil {
		change(&cfg)
	}
	a := &peerAgent{t: t, cluster: &cluster{cfg: cfg, places: &plainPlaces{}}}
	_, key, err := ed25519.GenerateKey(nil)
	must(t, err)
	must(t, a.connect(key, anybody{}))
	a.made = newMade(a.cluster, l, newMetrics())
	a.made.lost = func(origin) { a.lost++ }
	a.made.registry = func(origin) (place, error) { return layout{cfg.Root}, nil }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{a.host.Run, func(ctx context.Context) error { return a.holdings.run(ctx, l, a.address) }} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	a.stop = sync.OnceFunc(func() { cancel(); a.made.close(); wg.Wait() })
	t.Cleanup(a.stop)
	<-a.host.Ready()
	return a
}

// heldImage is a block image that one agent holds and another reads.
type heldImage struct {
	t              *testing.T
	holder, reader *peerAgent
	ledger         *ledger // of the reader
	source, image  digest.Digest
	data           []byte // of one blob
	blob           digest.Digest
}

func newHeldImage(t *testing.T, change func(*Config)) *heldImage {
	t.Helper()
	data, manifest := noise(7, 3<<20), []byte(`{"a":"manifest"}`)
	h := &heldImage{t: t, ledger: new(ledger), source: digest.FromString("source"), image: digest.FromBytes(manifest), data: data, blob: digest.FromBytes(data)}
	h.holder, h.reader = newPeerAgent(t, new(ledger), change), newPeerAgent(t, h.ledger, nil)
	h.put(h.image, manifest)
	h.put(h.blob, data)
	must(t, h.holder.holdings.keep(h.source))
	at := h.holder.address()
	h.ledger.answers = []api.Conversion{{State: api.ConversionDone, Image: h.image, Holder: &at}}
	return h
}

// path is where the holder keeps a blob.
func (h *heldImage) path(d digest.Digest) string {
	return filepath.Join(h.holder.holdings.layout(h.source), ocispec.ImageBlobsDir, "sha256", d.Encoded())
}

func (h *heldImage) put(d digest.Digest, data []byte) {
	h.t.Helper()
	must(h.t, os.MkdirAll(filepath.Dir(h.path(d)), 0o700))
	must(h.t, os.WriteFile(h.path(d), data, 0o600))
}

func (h *heldImage) place() place {
	return held{h.reader.made, origin{Ref: "app", Repository: "registry.example/copy", Cluster: h.source}}
}

// part reads a part of the blob as the block stack does.
func (h *heldImage) part(off, n int64) ([]byte, error) {
	body, err := h.place().Range(h.t.Context(), h.blob, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// wantErr checks that an error is of a kind.
func wantErr(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func TestHeldImage(t *testing.T) {
	h := newHeldImage(t, nil)
	manifest, err := h.place().Manifest(t.Context(), h.image)
	if err != nil || digest.FromBytes(manifest) != h.image {
		t.Errorf("manifest %q: %v", manifest, err)
	}
	whole, err := h.place().Blob(t.Context(), ocispec.Descriptor{Digest: h.blob, Size: int64(len(h.data))})
	if err != nil || !bytes.Equal(whole, h.data) {
		t.Errorf("%d bytes of the blob: %v", len(whole), err)
	}
	for _, r := range []struct{ off, n int64 }{{0, 1}, {12345, 1 << 20}, {int64(len(h.data)) - 7, 7}} {
		if got, err := h.part(r.off, r.n); err != nil || !bytes.Equal(got, h.data[r.off:r.off+r.n]) {
			t.Errorf("%d bytes at %d: %d bytes, %v", r.n, r.off, len(got), err)
		}
	}
	if n := h.ledger.questions(); n != 1 {
		t.Errorf("the schedulers were asked %d times where the image is", n)
	}
	st, err := os.Stat(filepath.Join(h.holder.holdings.layout(h.source), heldFile))
	if err != nil || time.Since(st.ModTime()) > time.Minute {
		t.Errorf("its use is not noted: %v", err)
	}
}

// What a holder does not have any more the schedulers hear of, and a read may succeed later; wrong bytes are no block image.
func TestHeldImageIsNotThere(t *testing.T) {
	h := newHeldImage(t, nil)
	must(t, os.WriteFile(h.path(h.blob), append([]byte("x"), h.data[1:]...), 0o600))
	_, err := h.place().Blob(t.Context(), ocispec.Descriptor{Digest: h.blob, Size: int64(len(h.data))})
	wantErr(t, "wrong bytes", err, blockfmt.ErrCorrupt)
	must(t, os.WriteFile(h.path(h.blob), h.data[:100], 0o600))
	_, err = h.part(50, 100)
	wantErr(t, "blob that is shorter", err, blockfmt.ErrTransient)
	must(t, os.Remove(h.path(h.blob)))
	_, err = h.part(0, 100)
	wantErr(t, "blob that is gone", err, blockfmt.ErrTransient)
	if last := h.ledger.asked[len(h.ledger.asked)-1]; last.Missing != h.image || last.Source != h.source || last.Willing {
		t.Errorf("the schedulers heard %+v last", last)
	}
	must(t, os.Remove(filepath.Join(h.holder.holdings.layout(h.source), heldFile)))
	_, err = h.place().Manifest(t.Context(), h.image)
	wantErr(t, "image that is not kept for others", err, blockfmt.ErrTransient)
}

// What is no digest is neither asked for nor believed.
func TestHeldImageWithoutDigest(t *testing.T) {
	h := newHeldImage(t, nil)
	for _, d := range []digest.Digest{"", "x", "sha256:12", "sha256:../../peer.key"} {
		_, err := h.place().Manifest(t.Context(), d)
		wantErr(t, "manifest "+string(d), err, blockfmt.ErrCorrupt)
		_, err = h.place().Range(t.Context(), d, 0, 1)
		wantErr(t, "part of "+string(d), err, blockfmt.ErrCorrupt)
		h.ledger.set(func(l *ledger) { l.answers = []api.Conversion{{State: api.ConversionDone, Image: d}} })
		_, err = h.reader.made.image(t.Context(), h.source)
		wantErr(t, "block image "+string(d), err, blockfmt.ErrCorrupt)
	}
}

// A holder that is gone, and one that nobody knows of, are errors at once, which may be different later.
func TestHolderIsGone(t *testing.T) {
	h := newHeldImage(t, nil)
	if _, err := h.part(0, 10); err != nil {
		t.Fatal(err)
	}
	h.holder.stop()
	begin := time.Now()
	_, err := h.part(0, 10)
	wantErr(t, "holder is gone", err, blockfmt.ErrTransient)
	if took := time.Since(begin); took > 2*dialPatience {
		t.Errorf("that took %v", took)
	}
	h.ledger.set(func(l *ledger) { l.answers = []api.Conversion{{State: api.ConversionNone}} })
	for range 3 {
		_, err = h.part(0, 10)
		wantErr(t, "nobody holds it", err, blockfmt.ErrTransient)
	}
	if h.reader.lost != 1 {
		t.Errorf("%d words of a lost image in three reads, want 1", h.reader.lost)
	}
	h.ledger.set(func(l *ledger) { l.err = api.ErrUnreachable })
	h.reader.made.forget(h.source)
	_, err = h.part(0, 10)
	wantErr(t, "no scheduler", err, blockfmt.ErrTransient)
}

// An image that was made again is read from its new holder, from the registry, or from this agent itself.
func TestHeldImageMoves(t *testing.T) {
	h := newHeldImage(t, nil)
	if _, err := h.part(0, 10); err != nil {
		t.Fatal(err)
	}
	own := layout{h.reader.holdings.layout(h.source)}
	for name, at := range map[string]struct {
		holder *api.Peer
		dir    string
	}{"to the reader": {&api.Peer{ID: string(h.reader.host.ID())}, own.dir}, "to the registry": {nil, h.reader.cfg.Root}} {
		h.reader.made.forget(h.source)
		h.ledger.set(func(l *ledger) {
			l.answers = []api.Conversion{{State: api.ConversionDone, Image: h.image, Holder: at.holder, Pushed: "registry.example/app"}}
		})
		path, err := layout{at.dir}.path(h.blob)
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, h.data, 0o600))
		if got, err := h.part(100, 100); err != nil || !bytes.Equal(got, h.data[100:200]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is asked of a holder in another way than by a blob's name is refused, and nothing else of the machine can be named.
func TestHoldingsRefuse(t *testing.T) {
	h := newHeldImage(t, nil)
	secret := filepath.Join(h.holder.cfg.Root, "peer.key")
	must(t, os.MkdirAll(filepath.Dir(secret), 0o700))
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for path, want := range map[string]string{
		"":                             "400",
		"/":                            "400",
		"/" + h.source.Encoded():       "400",
		"/" + h.source.Encoded() + "/": "400",
		"/" + h.source.Encoded() + "/sha256:../../../peer.key":            "400",
		"/../peer.key/" + h.blob.String():                                 "400",
		"/" + h.source.Encoded() + "/more/" + h.blob.String():             "400",
		"/" + strings.ToUpper(h.source.Encoded()) + "/" + h.blob.String(): "400",
		"/" + h.blob.Encoded() + "/" + h.blob.String():                    "404",
		"/" + h.source.Encoded() + "/" + h.source.String():                "404",
		"/" + h.source.Encoded() + "/" + h.blob.String():                  "200",
	} {
		if got := h.say("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 "+want) || strings.Contains(got, "secret") {
			t.Errorf("%q: %.60q, want %s", path, got, want)
		}
	}
	if got := h.say("POST /" + h.source.Encoded() + "/" + h.blob.String() + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400") {
		t.Errorf("POST: %.60q", got)
	}
	if got := h.say("GET /" + strings.Repeat("x", 64<<10)); !strings.HasPrefix(got, "HTTP/1.1 431") && got != "" {
		t.Errorf("an endless request: %.60q", got)
	}
}

// say sends a holder some bytes and returns its answer.
func (h *heldImage) say(text string) string {
	h.t.Helper()
	conn, err := h.reader.host.DialService(h.t.Context(), convertedProtocol, addressOf(h.holder.address()))
	must(h.t, err)
	defer conn.Close()
	must(h.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	conn.Write([]byte(text))      //nolint:errcheck // seen by the answer
	answer, _ := io.ReadAll(conn) // until the holder closes
	return string(answer)
}

// What a holder sends is within its upload limit.
func TestHoldingsArePaced(t *testing.T) {
	h := newHeldImage(t, func(c *Config) { c.UploadLimit = 4 << 20 })
	begin := time.Now()
	if got, err := h.part(0, 2<<20); err != nil || len(got) != 2<<20 {
		t.Fatalf("%d bytes: %v", len(got), err)
	}
	if took := time.Since(begin); took < 450*time.Millisecond {
		t.Errorf("2 MiB passed a limit of 4 MiB/s in %v", took)
	}
}

// One peer cannot take all answers.
func TestHoldingsAreShared(t *testing.T) {
	h := newHoldings(t.TempDir(), nil, slog.New(slog.DiscardHandler))
	for range heldOfOne {
		if !h.enter("greedy") {
			t.Fatal("refused too soon")
		}
	}
	if h.enter("greedy") || !h.enter("other") {
		t.Error("one peer has all answers")
	}
	h.leave("greedy")
	if !h.enter("greedy") {
		t.Error("refused after an answer")
	}
}

// Schedulers hear that the holdings are here as long as there are some.
func TestHoldingsAreAnnounced(t *testing.T) {
	for name, kept := range map[string]bool{"kept": true, "nothing": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, l := newHoldings(t.TempDir(), nil, slog.New(slog.DiscardHandler)), new(ledger)
				if kept {
					must(t, os.MkdirAll(h.layout("sha256:x"), 0o700))
					must(t, h.keep("sha256:x"))
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*api.HolderTimeout+time.Second)
				defer cancel()
				h.announce(ctx, l, func() api.Peer { return api.Peer{ID: "me"} })
				if want := 5 * int(api.HolderTimeout/announceEvery); kept && l.held != want || !kept && l.held != 0 {
					t.Errorf("announced %d times", l.held)
				}
			})
		})
	}
}

var _ stream.Service = (&holdings{}).serve
