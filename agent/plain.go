package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/agent/fetch"
	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/registryproxy"
)

const (
	// fromTree is who gave the bytes of a blob that came through its tree.
	fromTree = "tree"
	// leastPlain is how many bytes a blob has at least that travels in a tree: what is smaller is sooner read than a place is found.
	leastPlain = 64 << 10
	// stillness is how long nothing of a blob comes before its next block is asked for.
	stillness = time.Second
	// slowBlock is how long a block may take that a slow registry sends after others: the registry's client ends a request much sooner of which
	// nothing comes at all.
	slowBlock = time.Minute
	// outOfTurn is how many blocks ahead one is that a client does not have to wait for.
	outOfTurn = 16
)

// plainTree is the registryproxy.Source of an agent in a cluster: each blob travels in a tree of its own. Its blocks cannot be verified
// before the whole is here: bytes that are wrong then are thrown away, the tree is left, and they are read from the registry.
type plainTree struct {
	cluster *cluster
	cache   *cache.Cache
	up      registryproxy.Upstream
	alone   registryproxy.Source
}

// Fetch implements registryproxy.Source.
func (p plainTree) Fetch(ctx context.Context, f registryproxy.Fetch, sink registryproxy.Sink) (from []string, err error) {
	wrong := slices.Contains(f.Avoid, fromTree)
	if wrong {
		p.cluster.leave(f.Digest, "it brought wrong bytes")
	}
	if !wrong && f.Size >= leastPlain {
		err := p.through(ctx, f, sink)
		if err == nil {
			return []string{fromTree}, nil
		}
		p.cluster.cfg.Log.Info("blob comes from the registry, its tree does not bring it", "blob", f.Digest, "err", err)
		from = []string{fromTree}
	}
	alone, err := p.alone.Fetch(ctx, f, sink)
	return append(from, alone...), err
}

// through brings a blob through its tree.
func (p plainTree) through(ctx context.Context, f registryproxy.Fetch, sink registryproxy.Sink) error {
	wait, stop := context.WithTimeout(ctx, grace)
	defer stop()
	if p.cluster.places.WaitStripes(wait) == 0 {
		return fmt.Errorf("no scheduler has answered: %w", blockfmt.ErrTransient)
	}
	t, blob, err := p.enter(f, sink)
	if err != nil {
		return err
	}
	t.using.Add(1)
	defer t.using.Add(-1)
	select {
	case <-t.placed:
	case <-wait.Done():
		return fmt.Errorf("no place in the tree: %w", context.Cause(wait))
	}
	body := t.body.Load()
	if body == nil {
		return fmt.Errorf("the tree was left: %w", blockfmt.ErrTransient)
	}
	return pull(ctx, body, blob, sink)
}

// enter makes the agent a member of the blob's tree, with sink for what comes.
func (p plainTree) enter(f registryproxy.Fetch, sink registryproxy.Sink) (*membership, *plainBlob, error) {
	way := f.Ways[0]
	t, err := p.cluster.tree(f.Digest, way.Host+"/"+way.Repo+"@"+f.Digest.String())
	if err != nil {
		return nil, nil, err
	}
	ix, err := blockfmt.PlainIndex(f.Digest, f.Size)
	if err != nil {
		return nil, nil, err
	}
	order := make([]int, ix.Len())
	for i := range order {
		order[i] = i
	}
	blob := &plainBlob{cache: p.cache, up: p.up, came: make(chan struct{})}
	ranged := fetch.Ranged(blob, fetch.RangedConfig{Requests: p.cluster.cfg.Connections, Window: time.Millisecond, MinBytes: 4 << 20})
	mine := &content{indexes: []*blockfmt.Index{ix}, store: blob, registry: fetch.Retry(ranged, fetch.RetryConfig{Timeout: slowBlock}), order: order, ahead: len(order),
		close: func() error { return errors.Join(ranged.Close(), blob.close()) }}
	blob.arrive(f, sink)
	there, err := t.openBody(mine)
	if there == mine || err != nil {
		return t, blob, err
	}
	_ = mine.close() // nobody has used it
	blob, ok := there.store.(*plainBlob)
	if !ok {
		return nil, nil, fmt.Errorf("blob %s is a block image as well: %w", f.Digest, blockfmt.ErrUnsupported)
	}
	blob.arrive(f, sink)
	return t, blob, nil
}

// pull returns when the sink has all blocks. They come by themselves: a root fetches them all, and parents push them. Those are asked for
// that a client waits for out of turn, and what is next when nothing comes.
func pull(ctx context.Context, body *branch, blob *plainBlob, sink registryproxy.Sink) error {
	idle := time.NewTicker(stillness)
	defer idle.Stop()
	ask := func(block int) error {
		_, err := body.Blocks().Block(ctx, body.Image().Ref(block))
		return err
	}
	for low := 0; ; {
		came := blob.next()
		first, end := sink.Gap(low)
		if first == end {
			return nil
		}
		low = first // what is here stays
		wanted, waits := sink.Wanted()
		var err error
		select {
		case <-idle.C:
			err = ask(first)
		case <-came:
			if waits && wanted > first+outOfTurn {
				err = ask(wanted)
			}
			idle.Reset(stillness)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// plainBlob is a plain blob in its tree: the Store of its blocks, which are on their way in the proxy's sink and afterwards in the cache,
// and the RangeReader that reads them from the registry with the credentials of clients who may have the blob.
type plainBlob struct {
	cache *cache.Cache
	up    registryproxy.Upstream

	mu    sync.Mutex
	fetch registryproxy.Fetch // the latest, and its sink
	sink  registryproxy.Sink
	kept  *os.File      // nil: not looked for since
	came  chan struct{} // closed and replaced with each block that came
}

// arrive says that the blob comes into a sink from now on.
func (b *plainBlob) arrive(f registryproxy.Fetch, sink registryproxy.Sink) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fetch, b.sink = f, sink
}

func (b *plainBlob) latest() (registryproxy.Fetch, registryproxy.Sink) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fetch, b.sink
}

// Range implements fetch.RangeReader.
func (b *plainBlob) Range(ctx context.Context, _ digest.Digest, off, n int64) (body io.ReadCloser, err error) {
	f, _ := b.latest()
	err = fmt.Errorf("nobody here asked for the blob: %w", blockfmt.ErrNotFound)
	for _, way := range f.Ways {
		body, err = registryproxy.ReadRange(ctx, b.up, way, f.Avoid, off, n)
		if !errors.Is(err, blockfmt.ErrDenied) && !errors.Is(err, blockfmt.ErrNotFound) {
			break
		}
	}
	return body, err
}

// Has implements blockfmt.Store.
func (b *plainBlob) Has(ref blockfmt.Ref) bool {
	_, sink := b.latest()
	return sink != nil && sink.Has(ref.Number)
}

// Put implements blockfmt.Store. The bytes are verified when all are here.
func (b *plainBlob) Put(_ context.Context, ref blockfmt.Ref, stored []byte) error {
	if err := blockfmt.VerifyLength(ref, stored); err != nil {
		return err
	}
	_, sink := b.latest()
	if sink == nil {
		return fmt.Errorf("%v: nobody here asked for the blob: %w", ref, blockfmt.ErrNotFound)
	}
	if err := sink.Write(ref.Number, stored); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.came)
	b.came = make(chan struct{})
	return nil
}

// next returns a channel that is closed when the next block has come.
func (b *plainBlob) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.came
}

// Block implements blockfmt.Source.
func (b *plainBlob) Block(_ context.Context, ref blockfmt.Ref) ([]byte, error) {
	if !b.Has(ref) {
		return nil, fmt.Errorf("%v: %w", ref, blockfmt.ErrNotFound)
	}
	stored := make([]byte, ref.Length)
	if _, err := b.file(ref).ReadAt(stored, ref.Offset); err != nil {
		return nil, fmt.Errorf("%v: %w: %w", ref, err, blockfmt.ErrNotFound)
	}
	return stored, nil
}

// file is where the bytes are: a blob that was kept stays readable, also when it is evicted meanwhile.
func (b *plainBlob) file(ref blockfmt.Ref) io.ReaderAt {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept == nil {
		f, err := b.cache.OpenPlain(ref.Blob)
		if err != nil {
			return b.sink
		}
		b.kept = f
	}
	return b.kept
}

// close gives the blob's file free.
func (b *plainBlob) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept == nil {
		return nil
	}
	return b.kept.Close()
}
