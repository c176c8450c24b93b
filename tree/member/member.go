package member

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// A Position says where a member is in one stripe, as the tree's owner said.
type Position struct {
	Stripe int
	Epoch  uint64 // the highest counts; a Position of the same epoch brings other backups or children
	// Parent feeds the member. The zero Address says that it is the root, which holds the lease to read the registry.
	Parent stream.Address
	// LeaveOld says that the member, if it is the root now, does not ask its former parent for what that has: it is slow, or not trusted.
	LeaveOld bool
	Backups  []stream.Address // whom to ask, in this order, when the parent is in trouble
	// Standby says that the member follows the root, its parent: it reads the registry as soon as the edge to it breaks.
	Standby bool
	// Children are whom the member feeds, with the epochs of their attachments.
	Children []Child
}

func (p Position) root() bool { return p.Parent.ID == "" }

// A Child is whom a member feeds in a stripe.
type Child struct {
	stream.Address
	Epoch uint64
	Avoid bool // a root does not ask it for what it has: it is slow, or not trusted
}

// An Attacher makes a share the child of a peer: stream.Host.Attach, or what a simulation has in its place.
type Attacher func(ctx context.Context, s *stream.Share, to stream.Address, at stream.Attachment) (*stream.Peer, error)

// Config of a Member. Node, Image, Attach, Store and Origin are needed.
type Config struct {
	Node   *stream.Node
	Image  *stream.Image
	Attach Attacher
	// Store keeps the blocks; Recycle says that it does not hold on to their bytes (see stream.ShareConfig).
	Store   blockfmt.Store
	Recycle bool
	// Origin reads blocks from the registry. Its bytes need not be verified. It should read once what is asked for twice at a
	// time, because a root's own reads and those of its children may ask for the same block.
	Origin blockfmt.Source
	// Stack makes what the node reads through of the store and of what comes through the tree: the node's cache and whatever
	// belongs above it. It must keep in the store what it reads. It is called twice, because what children ask for is read
	// in a stack of its own (see the package). Default: no cache.
	Stack func(blockfmt.Store, blockfmt.Source) blockfmt.Source
	// Order are blocks in the order in which children get them unasked, such as a startup record, by number; the others follow.
	Order []int
	// Ahead is how many blocks of Order a root fetches unasked, for all to have. Default 0: what somebody reads.
	Ahead int
	// Workers is how many blocks a root fetches ahead at a time. Default 8.
	Workers int
	// Grace is how long a new member's reads wait for the first Position before they go to the registry. Default 0.
	Grace time.Duration
	// Repair is how long reads wait for the tree to repair itself, when neither the parent nor a backup can be reached, before
	// they go to the registry. Default 1 s.
	Repair time.Duration
	// Ladder is how reads go on when there is no progress.
	Ladder stream.LadderConfig
	// Failed is told of a peer that cannot be reached or whose edge broke. It must not block. Default: nobody.
	Failed func(peer stream.PeerID, err error)
}

func (c Config) withDefaults() (Config, error) {
	if c.Node == nil || c.Image == nil || c.Attach == nil || c.Store == nil || c.Origin == nil {
		return c, errors.New("member: Node, Image, Attach, Store and Origin are needed")
	}
	if c.Stack == nil {
		c.Stack = func(_ blockfmt.Store, src blockfmt.Source) blockfmt.Source { return src }
	}
	if c.Workers == 0 {
		c.Workers = 8
	}
	if c.Repair == 0 {
		c.Repair = time.Second
	}
	if c.Failed == nil {
		c.Failed = func(stream.PeerID, error) {}
	}
	c.Ahead = min(c.Ahead, len(c.Order))
	c.Ladder.Counters = c.Node.Counters()
	return c, nil
}

// A Member is an agent's place in the tree of one image. Safe for concurrent use.
type Member struct {
	cfg    Config
	share  *stream.Share
	blocks blockfmt.Source
	ctx    context.Context // ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // of links and fetches ahead

	mu    sync.Mutex
	seats []*seat // by stripe
}

// New begins to share an image, with nobody to ask but the registry until Place. Close the Member when done.
func New(cfg Config) (*Member, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	m := &Member{cfg: cfg}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	var own, relayed []blockfmt.Source
	for i := range cfg.Image.StripeCount() {
		s := &seat{member: m, stripe: i, ladder: stream.NewLadder(cfg.Ladder), relay: stream.NewLadder(cfg.Ladder)}
		m.seats, own, relayed = append(m.seats, s), append(own, s.ladder), append(relayed, s.relay)
		s.climb()
	}
	store := &announcing{Store: cfg.Store}
	if m.blocks, err = m.stack(store, own); err != nil {
		return nil, err
	}
	served, err := m.stack(store, relayed)
	if err != nil {
		return nil, err
	}
	m.share, err = cfg.Node.Share(stream.ShareConfig{Image: cfg.Image, Source: served, Store: cfg.Store, Recycle: cfg.Recycle,
		Feed: func() stream.Feed { return stream.InOrder(cfg.Image.Len(), cfg.Order) }})
	if err != nil {
		return nil, fmt.Errorf("member: %w", err)
	}
	store.share = m.share
	m.wg.Go(m.endGrace)
	return m, nil
}

// endGrace lets reads go to the registry when no position came in time.
func (m *Member) endGrace() {
	timer := time.NewTimer(m.cfg.Grace)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.seats {
		s.late = true
		s.climb()
	}
}

// stack returns what Config.Stack makes of the sources of the stripes.
func (m *Member) stack(store blockfmt.Store, stripes []blockfmt.Source) (blockfmt.Source, error) {
	striped, err := stream.Striped(m.cfg.Image, stripes...)
	if err != nil {
		return nil, err
	}
	return m.cfg.Stack(store, striped), nil
}

// Blocks returns what Config.Stack made: the Source that the node reads the image through.
func (m *Member) Blocks() blockfmt.Source { return m.blocks }

// Image returns the image.
func (m *Member) Image() *stream.Image { return m.cfg.Image }

// Held returns how many blocks of each stripe are here.
func (m *Member) Held() []int { return m.share.Held() }

// Children returns how many children are attached.
func (m *Member) Children() int { return len(m.share.Children()) }

// Epochs returns the epochs of the latest Positions, by stripe; 0 where there is none.
func (m *Member) Epochs() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	epochs := make([]uint64, len(m.seats))
	for i, s := range m.seats {
		epochs[i] = s.at.Epoch
	}
	return epochs
}

// Parents returns who feeds the member in each stripe now, empty where nobody does.
func (m *Member) Parents() []stream.PeerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	parents := make([]stream.PeerID, len(m.seats))
	for i, s := range m.seats {
		if s.parent != nil && s.parent.attached() {
			parents[i] = s.parent.id
		}
	}
	return parents
}

// Place tells the member where it is now. It does not block. A Position older than one that the member knows is ignored.
func (m *Member) Place(at Position) error {
	if at.Stripe < 0 || at.Stripe >= len(m.seats) {
		return fmt.Errorf("stripe %d of image %s, which has %d: %w", at.Stripe, m.cfg.Image.Digest(), len(m.seats), blockfmt.ErrUnsupported)
	}
	m.mu.Lock()
	if m.ctx.Err() == nil {
		m.seats[at.Stripe].place(at)
	}
	m.mu.Unlock()
	for _, c := range at.Children {
		m.share.Expect(c.ID, stream.StripesOf(at.Stripe), c.Epoch)
	}
	return nil
}

// Close ends all edges of the image and all reads through the tree, and waits for them.
func (m *Member) Close() error {
	m.mu.Lock()
	m.cancel() // under mu: no link begins afterwards
	m.mu.Unlock()
	err := m.share.Close()
	for _, s := range m.seats {
		err = errors.Join(err, s.ladder.Close(), s.relay.Close())
	}
	m.wg.Wait()
	return err
}

// announcing is a Store that tells the share what it keeps, so that children get it.
type announcing struct {
	blockfmt.Store
	share *stream.Share
}

func (a *announcing) Put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if err := a.Store.Put(ctx, ref, stored); err != nil {
		return err
	}
	a.share.Arrived(ref, stored)
	return nil
}

// Keep is Put for bytes that were verified already.
func (a *announcing) Keep(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	k, ok := a.Store.(interface {
		Keep(context.Context, blockfmt.Ref, []byte) error
	})
	if !ok {
		return a.Put(ctx, ref, stored)
	}
	if err := k.Keep(ctx, ref, stored); err != nil {
		return err
	}
	a.share.Arrived(ref, stored)
	return nil
}
