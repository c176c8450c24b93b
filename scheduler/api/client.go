package api

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Handler is told what schedulers say. Its methods must not block: while one runs, nothing else comes from that scheduler.
type Handler interface {
	// Position says where the agent is in one stripe of an image that it entered. Calls for one image come one at a time, with
	// epochs that never go back in a stripe. None comes for an image after Leave of it has returned.
	Position(Position)
	// Revoked says which peers are not of the cluster any more, by peer ID: always all of them.
	Revoked(peers []string)
}

// ClientConfig of a Client. Everything but Token, Work and Log is needed.
type ClientConfig struct {
	// Schedulers are some of the cluster's, as "https://host:port". The others become known from them.
	Schedulers []string
	// Token lets the agent join. It is needed until a certificate is in Dir, and again if that expired or is another cluster's.
	Token string
	// Dir keeps the certificate, that of the CA, and the list of revoked peers.
	Dir string
	// Key is the agent's identity: its peer ID is made of the public half.
	Key     ed25519.PrivateKey
	Handler Handler
	// Heartbeat says how the agent is now; it is called once an interval, and whenever Beat was. It must not block. Images may name
	// all images of the agent: the Client sends each scheduler those whose trees are there.
	Heartbeat func() Heartbeat
	// Work answers the calls of schedulers (work.go). Default: the agent takes no work.
	Work http.Handler
	// Log is told of joins, sessions and their ends. Default: discarded.
	Log *slog.Logger
}

// A Client is an agent's side of its conversation with the schedulers. It keeps a session with every scheduler that owns the
// tree of an image of the agent, and with one if there is none. It is safe for concurrent use.
type Client struct {
	cfg     ClientConfig
	id      *identity
	stripes atomic.Int32
	tried   settled
	beat    chan struct{}

	mu      sync.Mutex
	running context.Context // of Run; nil before and after
	tasks   sync.WaitGroup
	known   []string // schedulers: those of the configuration first
	links   map[string]*link
	home    *link // one that is kept though no image needs it; nil while none is up
	wants   map[digest.Digest]*want
	last    Heartbeat // without images
}

// Errors that callers act on.
var (
	// ErrNotJoined says that the agent has no certificate of a cluster yet.
	ErrNotJoined = errors.New("not joined to a cluster")
	// ErrUnreachable says that no scheduler can be asked now.
	ErrUnreachable = errors.New("no scheduler is reachable")
	// ErrNotFound says that nobody is in the tree of an image.
	ErrNotFound = errors.New("no such tree")
	// ErrUnknown says that a scheduler does not know what an operator named: a token, a revoked agent, a tree.
	ErrUnknown = errors.New("not known to the scheduler")
)

// NewClient returns a Client that does nothing before Run.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Handler == nil || cfg.Heartbeat == nil || cfg.Dir == "" || len(cfg.Schedulers) == 0 {
		return nil, errors.New("api: ClientConfig lacks Handler, Heartbeat, Dir or Schedulers")
	}
	known := make([]string, len(cfg.Schedulers))
	for i, s := range cfg.Schedulers {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
			return nil, fmt.Errorf("scheduler %q is not like https://host:port", s)
		}
		known[i] = "https://" + u.Host
	}
	if cfg.Token != "" {
		if _, err := ParseToken(cfg.Token); err != nil {
			return nil, err
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	id, err := newIdentity(cfg.Dir, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if err := id.load(cfg.Token); err != nil {
		cfg.Log.Warn("the certificate of a former run is of no use", "err", err)
	}
	return &Client{cfg: cfg, id: id, known: known, links: map[string]*link{}, wants: map[digest.Digest]*want{},
		beat: make(chan struct{}, 1), tried: settled{done: make(chan struct{})}}, nil
}

// Run joins the cluster if the agent has no certificate, and keeps sessions until ctx ends; then it returns nil. The only error
// is that the agent can never join: it has neither certificate nor token.
func (c *Client) Run(ctx context.Context) error {
	if err := c.join(ctx); err != nil || ctx.Err() != nil {
		c.tried.set()
		return err
	}
	c.cfg.Handler.Revoked(c.id.revocations())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	c.running = ctx
	for _, w := range c.wants {
		c.start(w)
	}
	c.mu.Unlock()
	var own sync.WaitGroup
	own.Go(func() { c.stayHome(ctx) })
	own.Go(func() { c.renew(ctx) })
	own.Go(func() { c.heartbeats(ctx) })
	own.Go(func() { c.work(ctx) })
	<-ctx.Done()
	own.Wait()
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	c.tasks.Wait()
	return nil
}

// join gets a certificate from whichever scheduler gives one, unless there is one.
func (c *Client) join(ctx context.Context) error {
	token, err := ParseToken(c.cfg.Token)
	for pause := newPause(); ctx.Err() == nil && !c.id.valid(time.Now()); pause.wait(ctx) {
		if err != nil {
			return fmt.Errorf("%w: it has no valid certificate in %s and no join token: get one with 'xylem scheduler token create'", ErrNotJoined, c.cfg.Dir)
		}
		for _, url := range c.schedulers() {
			if err := c.id.join(ctx, url, token); err != nil {
				c.cfg.Log.Warn("cannot join the cluster, trying again", "scheduler", url, "err", err)
				continue
			}
			c.cfg.Log.Info("joined the cluster", "scheduler", url, "peer", c.id.peer)
			break
		}
		if !c.id.valid(time.Now()) {
			c.tried.set()
		}
	}
	return nil
}

// renew asks for a new certificate in good time.
func (c *Client) renew(ctx context.Context) {
	for pause := newPause(); ctx.Err() == nil; {
		if !sleep(ctx, max(time.Second, min(time.Until(c.id.renewal()), time.Hour))) || time.Now().Before(c.id.renewal()) {
			continue
		}
		err := ErrUnreachable
		if l := c.anyLink(); l != nil {
			err = c.id.renew(ctx, l.http, l.url)
		}
		if err != nil {
			c.cfg.Log.Warn("cannot renew the certificate, trying again", "valid until", c.validUntil(), "err", err)
			pause.wait(ctx)
			continue
		}
		pause = newPause()
	}
}

func (c *Client) validUntil() time.Time {
	c.id.mu.RLock()
	defer c.id.mu.RUnlock()
	return c.id.certificate.NotAfter
}

// schedulers returns the URLs of those that are known, in random order.
func (c *Client) schedulers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.known)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// learn adds schedulers that others know. Those of the configuration stay known. Trees may be with others now, so whoever waits for a
// place asks again.
func (c *Client) learn(urls []string) {
	const enough = 64
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = c.known[:len(c.cfg.Schedulers)]
	for _, url := range urls {
		if !slices.Contains(c.known, url) && len(c.known) < enough {
			c.known = append(c.known, url)
		}
	}
	for _, w := range c.wants {
		w.wake()
	}
}

// Reachable tells whether a session with some scheduler is up. If none is, nobody will say soon where the agent's place is.
func (c *Client) Reachable() bool { return c.anyLink() != nil }

// anyLink returns a link that is up, nil if there is none.
func (c *Client) anyLink() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(c.links)) {
		if l := c.links[url]; l.isUp() {
			return l
		}
	}
	return nil
}

// Stripes returns how many stripes the trees of the cluster have, 0 before the first session.
func (c *Client) Stripes() int { return int(c.stripes.Load()) }

// Peer returns the agent's peer ID.
func (c *Client) Peer() string { return c.id.peer }

// Credential returns the agent's certificate (DER), which agents show to each other; nil before the agent joined. It is renewed
// from time to time: ask again whenever it is shown.
func (c *Client) Credential() []byte { return c.id.credential() }

// Admit returns nil if the credential is one of this cluster for that peer ID, valid now, and the peer is not revoked.
func (c *Client) Admit(peer string, credential []byte) error { return c.id.admit(peer, credential) }

// Tree returns the tree of an image from whoever owns it.
func (c *Client) Tree(ctx context.Context, image digest.Digest) (tree Tree, err error) {
	l := c.anyLink()
	if l == nil {
		return tree, ErrUnreachable
	}
	client, url := l.http, l.url
	for range 3 {
		err = call(ctx, client, http.MethodGet, url+PathTrees+"/"+image.String(), "", nil, &tree)
		failed, ok := errors.AsType[*callError](err)
		if !ok || failed.status != http.StatusMisdirectedRequest || failed.Owner == "" {
			break
		}
		client, url = newHTTP(c.id.tls()), failed.Owner
		defer client.CloseIdleConnections()
	}
	if statusOf(err) == http.StatusNotFound {
		err = fmt.Errorf("%s: %w", image, ErrNotFound)
	}
	return tree, err
}

// Trees lists the trees of the cluster.
func (c *Client) Trees(ctx context.Context) (trees []TreeInfo, err error) {
	l := c.anyLink()
	if l == nil {
		return nil, ErrUnreachable
	}
	err = call(ctx, l.http, http.MethodGet, l.url+PathTrees, "", nil, &trees)
	return trees, err
}
