package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/tree/member"
	"github.com/xylem-project/xylem/tree/stream"
)

// membership is the agent's place in the tree of one image. Two things travel there: the image's head, which is everything that is
// needed to mount it, and its blocks, which can be counted once the head is here.
type membership struct {
	cluster *cluster
	image   digest.Digest // of the block image's manifest, or a plain blob's
	used    time.Time     // under cluster.mu
	using   atomic.Int32  // who needs the tree now

	head, body atomic.Pointer[branch] // set under mu
	placed     chan struct{}          // closed with the first position

	mu        sync.Mutex
	closed    bool
	content   *content             // what body is made of, when it is known how many stripes there are
	positions map[int]api.Position // latest, by stripe
	pace      pace
	failed    map[string]bool      // since the last heartbeat
	cutOff    map[string]time.Time // when
}

// content is what travels in a tree: the blocks of some blobs.
type content struct {
	indexes  []*blockfmt.Index
	store    blockfmt.Store  // keeps them
	registry blockfmt.Source // has them
	order    []int           // their numbers, the first ones needed first
	ahead    int             // how many of them a root fetches for all
	close    func() error    // when the tree is left; may be nil
}

// meanBlock returns how many stored bytes a block has in the mean.
func (c *content) meanBlock() float64 {
	bytes, blocks := int64(0), 0
	for _, ix := range c.indexes {
		bytes, blocks = bytes+ix.StoredSize(), blocks+ix.Len()
	}
	return float64(bytes) / float64(max(1, blocks))
}

// headOf names the head of an image where it travels.
func headOf(image digest.Digest) digest.Digest { return digest.FromString("head of " + string(image)) }

// has says whether what travels under a digest is of this image.
func (t *membership) has(d digest.Digest) bool { return d == t.image || d == headOf(t.image) }

// openHead returns from with what is needed to mount an image coming through the tree.
func (t *membership) openHead(ctx context.Context, manifest ocispec.Manifest, from place) (place, error) {
	wait, stop := context.WithTimeout(ctx, grace)
	defer stop()
	stripes := t.cluster.places.WaitStripes(wait)
	if stripes == 0 {
		return from, nil
	}
	parts := headParts(manifest)
	h := &headPlace{place: from, tree: t, refs: map[digest.Digest]blockfmt.Ref{}}
	var indexes []*blockfmt.Index
	var order []int
	for i, desc := range parts {
		var b blockfmt.IndexBuilder
		id, err := blockfmt.ParseBlockID(desc.Digest.Encoded())
		if err != nil {
			return nil, err
		}
		b.Append(id, desc.Size, desc.Size)
		ix, err := b.Index(desc.Digest)
		if err != nil {
			return nil, err
		}
		indexes, order = append(indexes, ix), append(order, i)
		h.refs[desc.Digest] = ix.Ref(0)
	}
	image, err := stream.NewImage(headOf(t.image), stripes, indexes...)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return h, t.open(&t.head, image, &content{store: t.cluster.store, registry: partsOf{from, parts}, order: order, ahead: len(order)})
}

// headParts returns what is needed to mount an image, as far as it travels: everything but the data of its layers.
func headParts(m ocispec.Manifest) []ocispec.Descriptor {
	parts := []ocispec.Descriptor{m.Config}
	for _, l := range m.Layers {
		if l.Annotations[blockfmt.AnnotationRole] != blockfmt.RoleDevice {
			parts = append(parts, l)
		}
	}
	seen := map[digest.Digest]bool{}
	return slices.DeleteFunc(parts, func(d ocispec.Descriptor) bool {
		again := seen[d.Digest]
		seen[d.Digest] = true
		return again || d.Size <= 0 || d.Size > blockfmt.MaxBlockSize || d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256
	})
}

// headPlace is a place of which what is needed to mount an image comes through the image's tree.
type headPlace struct {
	place
	tree *membership
	refs map[digest.Digest]blockfmt.Ref
}

func (h *headPlace) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	ref, ok := h.refs[desc.Digest]
	head := h.tree.head.Load()
	if !ok || head == nil {
		return h.place.Blob(ctx, desc)
	}
	stored, err := head.Blocks().Block(ctx, ref)
	if err != nil && h.tree.head.Load() != head {
		return h.place.Blob(ctx, desc)
	}
	return stored, err
}

// partsOf gives whole blobs of a place as blocks.
type partsOf struct {
	from  place
	parts []ocispec.Descriptor
}

// Verified implements blockfmt.VerifiedSource: a place compares blobs with their digests, which are their block IDs.
func (p partsOf) Verified() bool { return true }

func (p partsOf) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	i := slices.IndexFunc(p.parts, func(d ocispec.Descriptor) bool { return d.Digest == ref.Blob })
	if i < 0 {
		return nil, fmt.Errorf("%v: %w", ref, blockfmt.ErrNotFound)
	}
	return p.from.Blob(ctx, p.parts[i])
}

// openBody has blocks travel, from now on or as soon as a scheduler says in how many stripes. It returns what travels, which is
// what the first call was for.
func (t *membership) openBody(c *content) (*content, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.content == nil {
		t.content = c
	}
	if stripes := t.cluster.places.Stripes(); stripes > 0 {
		return t.content, t.bodyIn(stripes)
	}
	return t.content, nil
}

// bodyIn makes the branch of the blocks, if there is none; t.mu is held.
func (t *membership) bodyIn(stripes int) error {
	travelling, err := stream.NewImage(t.image, stripes, t.content.indexes...)
	if err != nil {
		return err
	}
	return t.open(&t.body, travelling, t.content)
}

// open makes a branch if there is none, and puts it where the scheduler said; t.mu is held.
func (t *membership) open(at *atomic.Pointer[branch], image *stream.Image, c *content) error {
	if at.Load() != nil || t.closed {
		return nil
	}
	b, err := t.cluster.branch(image, c, t.lost)
	if err != nil {
		return err
	}
	for _, p := range t.positions {
		t.placeBranch(b, p)
	}
	at.Store(b)
	return nil
}

// place takes note of the agent's place.
func (t *membership) place(p api.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, known := t.positions[p.Stripe]; known && p.Epoch < old.Epoch {
		return
	}
	if len(t.positions) == 0 {
		close(t.placed)
	}
	t.positions[p.Stripe] = p
	if t.body.Load() == nil && t.content != nil {
		if err := t.bodyIn(p.Stripes); err != nil {
			t.cluster.cfg.Log.Warn("blocks do not travel through the tree", "image", t.image, "err", err)
		}
	}
	for _, b := range []*branch{t.head.Load(), t.body.Load()} {
		if b != nil {
			t.placeBranch(b, p)
		}
	}
}

func (t *membership) placeBranch(b *branch, p api.Position) {
	at := member.Position{Stripe: p.Stripe, Epoch: p.Epoch, Standby: p.Standby, LeaveOld: p.LeaveOld}
	if p.Parent != nil {
		at.Parent = addressOf(*p.Parent)
	}
	for _, peer := range p.Backups {
		at.Backups = append(at.Backups, addressOf(peer))
	}
	for _, child := range p.Children {
		at.Children = append(at.Children, member.Child{Address: addressOf(child.Peer), Epoch: child.Epoch, Avoid: child.Avoid})
	}
	if err := b.Place(at); err != nil {
		t.cluster.cfg.Log.Warn("place in a tree not taken", "image", t.image, "err", err)
	}
}

func addressOf(p api.Peer) stream.Address {
	return stream.Address{ID: stream.PeerID(p.ID), Addrs: p.Addrs}
}

// lost takes note of a peer that cannot be reached.
func (t *membership) lost(peer stream.PeerID, err error) {
	t.cluster.cfg.Log.Info("edge to a peer is broken", "image", t.image, "peer", peer, "err", err)
	t.mu.Lock()
	if len(t.failed) < api.MaxNamed {
		t.failed[string(peer)] = true
	}
	t.mu.Unlock()
	t.cluster.places.Beat()
}

// cutsOff takes note of a peer that cannot be trusted.
func (t *membership) cutsOff(peer stream.PeerID) {
	t.mu.Lock()
	if len(t.cutOff) < api.MaxNamed {
		t.cutOff[string(peer)] = time.Now()
	}
	t.mu.Unlock()
	t.cluster.places.Beat()
}

// report says how the agent gets on with the image, and how many children it feeds.
func (t *membership) report() (m api.Membership, children int) {
	m.Image = t.image
	if b := t.body.Load(); b != nil {
		m.Held, m.Epochs = b.Held(), b.Epochs()
		m.Total = make([]int, len(m.Held))
		for i := range b.Image().Len() {
			m.Total[b.Image().Stripe(i)]++
		}
		children = b.Children()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	m.Rates = t.pace.since(m.Held, t.content, time.Now())
	maps.DeleteFunc(t.cutOff, func(_ string, at time.Time) bool { return time.Since(at) > ban })
	m.Failed, m.CutOff = slices.Collect(maps.Keys(t.failed)), slices.Collect(maps.Keys(t.cutOff))
	clear(t.failed)
	return m, children
}

// close leaves the tree.
func (t *membership) close() (err error) {
	t.mu.Lock()
	t.closed = true
	branches := []*branch{t.head.Swap(nil), t.body.Swap(nil)}
	c := t.content
	t.mu.Unlock()
	for _, b := range branches {
		if b != nil {
			err = errors.Join(err, b.close())
		}
	}
	if c != nil && c.close != nil {
		err = errors.Join(err, c.close())
	}
	return err
}

// route is the Source of an image's blocks: through the tree while the agent is in it, else from the registry alone.
type route struct {
	tree  *membership
	alone blockfmt.Source
}

func (r route) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	body := r.tree.body.Load()
	if body == nil {
		return r.alone.Block(ctx, ref)
	}
	stored, err := body.Blocks().Block(ctx, ref)
	if err != nil && r.tree.body.Load() != body {
		return r.alone.Block(ctx, ref)
	}
	return stored, err
}

// Promote hurries a read that is under way in the background.
func (r route) Promote(ref blockfmt.Ref) {
	if body := r.tree.body.Load(); body != nil {
		body.reads.Promote(ref)
	}
}

// pace remembers what was held at the last heartbeat.
type pace struct {
	held []int
	at   time.Time
}

// since returns how many bytes per second came in each stripe since the last call, by the mean size of the blocks.
func (p *pace) since(held []int, c *content, now time.Time) (rates []int64) {
	if len(held) == len(p.held) && c != nil {
		mean := c.meanBlock()
		for i := range held {
			came := float64(max(0, held[i]-p.held[i])) * mean
			rates = append(rates, int64(came/max(now.Sub(p.at).Seconds(), 1e-3)))
		}
	}
	p.held, p.at = held, now
	return rates
}
