package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/scheduler/api"
)

// ledger is the schedulers of a cluster as one agent hears them: it answers what it is told to, and then the last again and again.
type ledger struct {
	mu      sync.Mutex
	answers []api.Conversion
	err     error // instead of answers
	refuse  error // of reports
	asked   []api.ConvertRequest
	told    []api.ConvertedRequest
	held    int
}

func states(all ...api.ConversionState) *ledger {
	l := new(ledger)
	for _, s := range all {
		l.answers = append(l.answers, api.Conversion{State: s})
	}
	return l
}

func (l *ledger) Conversion(_ context.Context, r api.ConvertRequest) (api.Conversion, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, r)
	if l.err != nil {
		return api.Conversion{}, l.err
	}
	answer := l.answers[0]
	if len(l.answers) > 1 {
		l.answers = l.answers[1:]
	}
	return answer, nil
}

func (l *ledger) Converted(_ context.Context, r api.ConvertedRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, r)
	return l.refuse
}

func (l *ledger) Holding(context.Context, api.HoldingRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held++
	return l.err
}

// set changes what is answered from now on.
func (l *ledger) set(change func(*ledger)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// reports returns what was reported so far.
func (l *ledger) reports() []api.ConvertedRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.told)
}

// questions returns how often it was asked.
func (l *ledger) questions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.asked)
}

// imageContent is the convert.Content of an image in memory.
type imageContent struct {
	image v1.Image
	err   error         // of blobs
	hold  chan struct{} // if not nil, blobs come when it is closed, or their reader goes
}

func (c imageContent) Manifest(context.Context, digest.Digest) ([]byte, string, error) {
	body, err := c.image.RawManifest()
	return body, "application/vnd.docker.distribution.manifest.v2+json", err
}

func (c imageContent) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if c.err != nil {
		return nil, c.err
	}
	if c.hold != nil {
		select {
		case <-c.hold:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if config, err := c.image.RawConfigFile(); err == nil && digest.FromBytes(config) == desc.Digest {
		return io.NopCloser(bytes.NewReader(config)), nil
	}
	layer, err := c.image.LayerByDigest(v1.Hash{Algorithm: "sha256", Hex: desc.Digest.Encoded()})
	if err != nil {
		return nil, err
	}
	return layer.Compressed()
}

// workshop is a converter on virtual time, with what it did.
type workshop struct {
	*converter
	t       *testing.T
	ledger  *ledger
	content imageContent
	source  digest.Digest
	origin  origin
	log     *logBuffer
	stop    func() // waits for its end

	mu      sync.Mutex
	adopted []origin
	found   int
	known   bool
}

// newWorkshop starts a converter, in a cluster if there is a ledger.
func newWorkshop(t *testing.T, l *ledger) *workshop {
	t.Helper()
	image := imageOf(t, map[string][]byte{"file": noise(1, 700<<10)})
	manifest, err := image.RawManifest()
	must(t, err)
	w := &workshop{t: t, ledger: l, content: imageContent{image: image}, source: digest.FromBytes(manifest), log: &logBuffer{},
		origin: origin{Ref: "registry.example/app:1", Repository: "registry.example/app"}}
	cfg, dir := testConfig(t), t.TempDir()
	cfg.Log = slog.New(slog.NewTextHandler(w.log, nil))
	w.converter = &converter{dir: dir, key: nodeKeyIn(t, dir), again: 10 * time.Second, metrics: newMetrics(), log: cfg.Log,
		content: func(context.Context, origin, digest.Digest) (convert.Content, error) { return w.content, nil },
		known:   func(context.Context, origin, digest.Digest) bool { return w.known },
		done: func(_ context.Context, o origin, _ digest.Digest, _ []byte) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.adopted = append(w.adopted, o)
			return nil
		},
		found: func(digest.Digest) { w.found++ },
		wake:  make(chan struct{}, 1), jobs: map[digest.Digest]*job{}, inept: map[digest.Digest]time.Time{}}
	if l != nil {
		at := api.Peer{ID: "me", Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:9752")}}
		w.cluster = &shared{schedulers: l, address: func() api.Peer { return at }, holdings: newHoldings(dir, nil, cfg.Log)}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.run(ctx) })
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(w.stop)
	return w
}

// ends waits for the end of the image's conversion and returns how long that took.
func (w *workshop) ends() time.Duration {
	w.t.Helper()
	begin := time.Now()
	w.pause()
	w.stop()
	return time.Since(begin)
}

// pause waits for the end of the image's conversion if there is one.
func (w *workshop) pause() {
	w.converter.mu.Lock()
	j := w.jobs[w.source]
	w.converter.mu.Unlock()
	if j != nil {
		<-j.ended
	}
}

// expect checks whether the block image is used here and kept for others.
func (w *workshop) expect(adopted, held bool) {
	w.t.Helper()
	layout := w.layout(w.source)
	if got := len(w.adopted) == 1 && w.adopted[0].Layout == layout; got != adopted || len(w.adopted) > 1 {
		w.t.Errorf("used here: %+v, want %v", w.adopted, adopted)
	}
	if got := isHeld(layout); got != held {
		w.t.Errorf("kept for others: %v, want %v", got, held)
	}
	if _, err := os.Stat(layout); !adopted && !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("a block image that is of no use is left: %v", err)
	}
}

// inBubble runs a test of a converter on virtual time.
func inBubble(t *testing.T, l *ledger, test func(w *workshop)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(newWorkshop(t, l)) })
}
