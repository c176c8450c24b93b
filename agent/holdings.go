package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/stream"
)

// holdings are the block images that this agent made and keeps for others of its cluster. They read them as they would a registry: whole blobs
// and parts of blobs, over HTTP on streams of peers that were admitted.
type holdings struct {
	dir   string // Root/converted
	pace  func(ctx context.Context, bytes int) error
	log   *slog.Logger
	uses  func(layout string) bool // this node itself has images whose blocks are in the layout
	slots chan struct{}            // of answers
	conns *handoff

	mu   sync.Mutex
	busy map[string]int // answers, by the peer they are for
}

const (
	// convertedProtocol is the libp2p protocol of holdings.
	convertedProtocol = "/xylem/converted/1"
	// heldFile marks a layout that is kept for others. Its time is when that was last of use.
	heldFile = "held"
	// heldIdle is how long a block image is kept that nobody asks for.
	heldIdle = 7 * 24 * time.Hour
	// heldAnswers and heldConns bound what is answered at a time, and the connections of all peers; heldOfOne what is answered to one peer.
	heldAnswers, heldConns, heldOfOne = 64, 256, 16
	// heldPart is how much is sent between two looks at the clock and the upload limit.
	heldPart = 64 << 10
	// heldPatience bounds the time in which a peer takes a part.
	heldPatience = 10 * time.Second
	// announceEvery is how often schedulers hear that the holdings are still here.
	announceEvery = api.HolderTimeout / 5
)

func newHoldings(dir string, pace func(context.Context, int) error, log *slog.Logger) *holdings {
	return &holdings{dir: dir, pace: pace, log: log, uses: func(string) bool { return false },
		slots: make(chan struct{}, heldAnswers), conns: newHandoff(heldConns), busy: map[string]int{}}
}

func (h *holdings) layout(source digest.Digest) string { return filepath.Join(h.dir, source.Encoded()) }

// keep keeps the layout of a source for others.
func (h *holdings) keep(source digest.Digest) error {
	return writeBytes(filepath.Join(h.layout(source), heldFile), []byte(source.String()+"\n"))
}

// drop removes the layout of a source.
func (h *holdings) drop(source digest.Digest) {
	if err := os.RemoveAll(h.layout(source)); err != nil {
		h.log.Warn("block image not removed", "source", source, "err", err)
	}
}

// isHeld says whether a layout is kept for others.
func isHeld(layout string) bool {
	_, err := os.Stat(filepath.Join(layout, heldFile))
	return err == nil
}

// run serves other agents and tells schedulers that the holdings are here, until ctx ends.
func (h *holdings) run(ctx context.Context, s schedulers, address func() api.Peer) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)}
	var announcing sync.WaitGroup
	announcing.Go(func() { h.announce(ctx, s, address) })
	defer announcing.Wait()
	return serveWith(ctx, h.conns, srv)
}

func (h *holdings) announce(ctx context.Context, s schedulers, address func() api.Peer) {
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if h.prune() == 0 {
			continue
		}
		if err := s.Holding(ctx, api.HoldingRequest{Agent: address()}); err != nil && ctx.Err() == nil {
			h.log.Debug("schedulers not told of converted images", "err", err)
		}
	}
}

// prune removes what nobody has asked for in a long time, and returns how many layouts are kept.
func (h *holdings) prune() (kept int) {
	marks, err := filepath.Glob(filepath.Join(h.dir, "*", heldFile))
	if err != nil {
		return 0
	}
	for _, mark := range marks {
		st, err := os.Stat(mark)
		if err != nil || time.Since(st.ModTime()) < heldIdle {
			kept++
			continue
		}
		err = os.Remove(mark)
		if layout := filepath.Dir(mark); err == nil && !h.uses(layout) {
			err = os.RemoveAll(layout)
		}
		if err != nil {
			h.log.Warn("converted image is kept on", "mark", mark, "err", err)
		}
	}
	return kept
}

// enter says whether a peer may have one more answer, until leave.
func (h *holdings) enter(peer string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy[peer] >= heldOfOne {
		return false
	}
	h.busy[peer]++
	return true
}

func (h *holdings) leave(peer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy[peer]--; h.busy[peer] == 0 {
		delete(h.busy, peer)
	}
}

// serve implements stream.Service.
func (h *holdings) serve(ctx context.Context, conn net.Conn, _ stream.PeerID) {
	h.conns.give(ctx, conn)
}

// ServeHTTP answers GET /<hex of the source>/<digest>.
func (h *holdings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	source, blob, err := parseHeld(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !h.enter(r.RemoteAddr) {
		http.Error(w, "too many requests at a time", http.StatusTooManyRequests)
		return
	}
	defer h.leave(r.RemoteAddr)
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
		h.answer(w, r, source, blob)
	case <-r.Context().Done():
	}
}

// answer gives a blob of a layout that is held.
func (h *holdings) answer(w http.ResponseWriter, r *http.Request, source, blob digest.Digest) {
	dir := h.layout(source)
	if !isHeld(dir) {
		http.Error(w, "not kept here", http.StatusNotFound)
		return
	}
	path, err := layout{dir}.path(blob)
	if err != nil {
		http.Error(w, "no such blob", http.StatusNotFound)
		return
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "no such blob", http.StatusNotFound)
		return
	case err != nil:
		h.log.Warn("converted image cannot be read", "source", source, "err", err)
		http.Error(w, "blob cannot be opened", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	if now := time.Now(); os.Chtimes(filepath.Join(dir, heldFile), now, now) != nil {
		h.log.Debug("use of a converted image not noted", "source", source)
	}
	paced := &pacedWriter{ResponseWriter: w, control: http.NewResponseController(w), ctx: r.Context(), pace: h.pace}
	http.ServeContent(paced, r, "", time.Time{}, f)
}

// parseHeld reads what is asked for.
func parseHeld(r *http.Request) (source, blob digest.Digest, err error) {
	if r.Method != http.MethodGet {
		return "", "", fmt.Errorf("method %.20q: want GET", r.Method)
	}
	dir, name := filepath.Split(r.URL.Path)
	source, blob = digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(dir)), digest.Digest(name)
	if err := errors.Join(source.Validate(), blob.Validate()); err != nil || len(r.URL.Path) != len("/")+64+len("/")+len(name) {
		return "", "", fmt.Errorf("path %.200q: want /<hex of the source>/<digest>", r.URL.Path)
	}
	return source, blob, nil
}

// pacedWriter keeps an answer to the upload limit, and gives the peer time for each part.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	ctx     context.Context
	pace    func(context.Context, int) error
}

func (p *pacedWriter) Write(data []byte) (n int, err error) {
	for len(data) > 0 && err == nil {
		part := data[:min(len(data), heldPart)]
		if err = p.pace(p.ctx, len(part)); err != nil {
			break
		}
		if err = p.control.SetWriteDeadline(time.Now().Add(heldPatience)); err != nil {
			break
		}
		var m int
		m, err = p.ResponseWriter.Write(part)
		n, data = n+m, data[m:]
	}
	return n, err
}
