package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/stream"
)

// held is the place of a block image that the cluster made: with the agent that holds it now, or in the registry if it was pushed
// meanwhile. Blobs are named by their bytes, so it does not matter whether that is the agent that made this one.
type held struct {
	made   *made
	origin origin
}

// Referrers implements place: what is held is known from schedulers.
func (held) Referrers(context.Context, digest.Digest, string) ([]ocispec.Descriptor, error) {
	return nil, nil
}

// Manifest implements place.
func (h held) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	at, err := h.made.place(ctx, h.origin)
	if err != nil {
		return nil, err
	}
	return at.Manifest(ctx, d)
}

// Blob implements place.
func (h held) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	at, err := h.made.place(ctx, h.origin)
	if err != nil {
		return nil, err
	}
	return at.Blob(ctx, desc)
}

// Range implements place.
func (h held) Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error) {
	at, err := h.made.place(ctx, h.origin)
	if err != nil {
		return nil, err
	}
	return at.Range(ctx, blob, off, n)
}

// made is what schedulers say of the block images that the cluster made, and the way to who holds them. Safe for concurrent use.
type made struct {
	schedulers schedulers
	dial       func(ctx context.Context, to stream.Address) (net.Conn, error)
	self       func() stream.PeerID
	own        func(source digest.Digest) place // what this agent holds itself
	registry   func(origin) (place, error)
	lost       func(o origin) // nobody holds the image any more
	metrics    *metrics
	log        *slog.Logger
	http       *http.Client

	mu     sync.Mutex
	places map[digest.Digest]knownPlace // by source
	peers  map[string]api.Peer          // holders, by ID
}

// knownPlace is where a block image was a moment ago, or why it was nowhere.
type knownPlace struct {
	at    place
	err   error
	asked time.Time
}

const (
	// placeTTL and noPlaceTTL are how long it is believed who holds an image, and that nobody does.
	placeTTL, noPlaceTTL = time.Minute, time.Second
	// dialPatience bounds the time until a holder is reached, heldStall that in which nothing comes of it.
	dialPatience, heldStall = 3 * time.Second, 10 * time.Second
)

// newMade returns what is made in a cluster; its registry is not set yet.
func newMade(c *cluster, s schedulers, m *metrics) *made {
	d := &made{schedulers: s, metrics: m, log: c.cfg.Log, self: c.host.ID, lost: func(origin) {}, places: map[digest.Digest]knownPlace{}, peers: map[string]api.Peer{},
		own: func(source digest.Digest) place { return layout{c.holdings.layout(source)} },
		dial: func(ctx context.Context, to stream.Address) (net.Conn, error) {
			return c.host.DialService(ctx, convertedProtocol, to)
		}}
	d.http = &http.Client{Transport: &http.Transport{
		DialContext: d.dialPeer, MaxConnsPerHost: heldOfOne, ResponseHeaderTimeout: heldStall, IdleConnTimeout: 30 * time.Second, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10,
	}}
	return d
}

func (m *made) close() { m.http.CloseIdleConnections() }

// dialPeer connects to a holder, whose peer ID is the host's name.
func (m *made) dialPeer(ctx context.Context, _, address string) (net.Conn, error) {
	id, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	peer := m.peers[id]
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	return m.dial(ctx, addressOf(peer))
}

// image returns the block image that the cluster made of a source, blockfmt.ErrNotFound if there is none.
func (m *made) image(ctx context.Context, source digest.Digest) (api.Conversion, error) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	answer, err := m.schedulers.Conversion(ctx, api.ConvertRequest{Source: source})
	if err != nil {
		return answer, fmt.Errorf("conversion of %s: %w: %w", source, err, blockfmt.ErrTransient)
	}
	if answer.State != api.ConversionDone {
		return answer, fmt.Errorf("conversion of %s: %s: %w", source, answer.State, blockfmt.ErrNotFound)
	}
	if err := answer.Image.Validate(); err != nil {
		return answer, fmt.Errorf("conversion of %s: block image %.80q: %w: %w", source, answer.Image, err, blockfmt.ErrCorrupt)
	}
	return answer, nil
}

// place returns where a block image is now.
func (m *made) place(ctx context.Context, o origin) (place, error) {
	m.mu.Lock()
	known, ok := m.places[o.Cluster]
	m.mu.Unlock()
	if age := time.Since(known.asked); ok && (age < noPlaceTTL || known.err == nil && age < placeTTL) {
		return known.at, known.err
	}
	at, err := m.find(ctx, o)
	if ctx.Err() != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[o.Cluster] = knownPlace{at, err, time.Now()}
	return at, err
}

// find asks who holds a block image.
func (m *made) find(ctx context.Context, o origin) (place, error) {
	answer, err := m.image(ctx, o.Cluster)
	switch {
	case errors.Is(err, blockfmt.ErrNotFound):
		m.lost(o)
		return nil, fmt.Errorf("no agent holds the block image of %s: %w: %w", o.Ref, err, blockfmt.ErrTransient)
	case err != nil:
		return nil, err
	case answer.Holder == nil:
		at, err := m.pushed(o, answer)
		if err != nil {
			return nil, err
		}
		return m.registry(at)
	case answer.Holder.ID == string(m.self()):
		return m.own(o.Cluster), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peers[answer.Holder.ID] = *answer.Holder
	return holderPlace{m, o.Cluster, answer}, nil
}

// pushed returns where a block image is that was pushed: in the registry of its source, perhaps in another repository. An agent says which, so no
// other registry is asked.
func (m *made) pushed(o origin, answer api.Conversion) (origin, error) {
	host, _, _ := strings.Cut(o.Repository, "/")
	other, _, named := strings.Cut(answer.Pushed, "/")
	if !named || host != other {
		return o, fmt.Errorf("the block image of %s is in %.200q, want a repository of %s: %w", o, answer.Pushed, host, blockfmt.ErrNotFound)
	}
	return origin{Ref: o.Ref, Repository: answer.Pushed}, nil
}

// miss tells the schedulers that a block image is not where they said.
func (m *made) miss(ctx context.Context, source, image digest.Digest) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if _, err := m.schedulers.Conversion(ctx, api.ConvertRequest{Source: source, Missing: image}); err != nil {
		m.log.Debug("schedulers not told of a lost block image", "source", source, "err", err)
	}
}

// forget has schedulers asked anew where a block image is.
func (m *made) forget(source digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.places, source)
}

// holderPlace is the place of block images with the agent that holds them. What Range returns is not checked. Errors are transient: another
// agent may hold the image soon.
type holderPlace struct {
	made   *made
	source digest.Digest
	answer api.Conversion
}

// Referrers implements place.
func (holderPlace) Referrers(context.Context, digest.Digest, string) ([]ocispec.Descriptor, error) {
	return nil, nil
}

// Manifest implements place.
func (h holderPlace) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	return h.whole(ctx, d, blockfmt.MaxManifestSize)
}

// Blob implements place.
func (h holderPlace) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxMetadataStored {
		return nil, fmt.Errorf("blob %s: %d bytes, at most %d: %w", desc.Digest, desc.Size, int64(maxMetadataStored), blockfmt.ErrCorrupt)
	}
	return h.whole(ctx, desc.Digest, desc.Size)
}

// whole reads a blob of at most limit bytes and checks it.
func (h holderPlace) whole(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	body, err := h.get(ctx, d, "", -1)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit || d.Algorithm().FromBytes(data) != d {
		return nil, fmt.Errorf("%s: agent %s gave other bytes: %w", d, h.answer.Holder.ID, blockfmt.ErrCorrupt)
	}
	return data, nil
}

// Range implements place.
func (h holderPlace) Range(ctx context.Context, blob digest.Digest, off, n int64) (io.ReadCloser, error) {
	return h.get(ctx, blob, fmt.Sprintf("bytes=%d-%d", off, off+n-1), n)
}

// get asks the holder for a blob, or for n bytes of it.
func (h holderPlace) get(ctx context.Context, d digest.Digest, part string, n int64) (io.ReadCloser, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("blob %.80q: %w: %w", d, err, blockfmt.ErrCorrupt)
	}
	ctx, cancel := context.WithCancel(ctx)
	at := url.URL{Scheme: "http", Host: h.answer.Holder.ID, Path: "/" + h.source.Encoded() + "/" + d.String()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		cancel()
		return nil, err
	}
	if part != "" {
		req.Header.Set("Range", part)
	}
	resp, err := h.made.http.Do(req)
	if err == nil && !isAnswer(resp, n) {
		_ = resp.Body.Close()
		err = fmt.Errorf("it answers %s with %d bytes", resp.Status, resp.ContentLength)
		if resp.StatusCode == http.StatusNotFound {
			h.made.miss(ctx, h.source, h.answer.Image)
		}
	}
	if err != nil {
		cancel()
		return nil, h.failed(err)
	}
	return &holderBody{holder: h, body: resp.Body, cancel: cancel, watch: time.AfterFunc(heldStall, cancel)}, nil
}

// isAnswer says whether a response is a blob, or the n bytes of it that were asked for.
func isAnswer(resp *http.Response, n int64) bool {
	if n < 0 {
		return resp.StatusCode == http.StatusOK
	}
	return resp.StatusCode == http.StatusPartialContent && resp.ContentLength == n
}

// failed gives an error of a holder its kind, and has schedulers asked who holds the image now.
func (h holderPlace) failed(err error) error {
	h.made.forget(h.source)
	h.made.metrics.held(0, err)
	return fmt.Errorf("block image of %s from agent %s: %w: %w", h.source, h.answer.Holder.ID, err, blockfmt.ErrTransient)
}

// holderBody is an answer of a holder. It gives up when nothing comes for a while.
type holderBody struct {
	holder holderPlace
	body   io.ReadCloser
	cancel context.CancelFunc
	watch  *time.Timer
	n      int64
	failed bool
}

func (b *holderBody) Read(p []byte) (int, error) {
	b.watch.Reset(heldStall)
	n, err := b.body.Read(p)
	b.watch.Stop()
	b.n += int64(n)
	if err != nil && err != io.EOF {
		b.failed = true
		err = b.holder.failed(err)
	}
	return n, err
}

func (b *holderBody) Close() error {
	b.watch.Stop()
	if !b.failed {
		b.holder.made.metrics.held(b.n, nil)
	}
	err := b.body.Close()
	b.cancel()
	return err
}

var _, _ place = held{}, holderPlace{}
