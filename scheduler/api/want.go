package api

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
)

// want is an image that the agent needs, or is about to leave. Fields are guarded by Client.mu but for the last.
type want struct {
	image   digest.Digest
	ref     string
	total   []int
	needed  bool
	started bool
	link    *link // to the scheduler where the image is being entered or was; positions from others do not count
	entered bool
	owner   string // URL of the scheduler to try next; empty: home
	woken   chan struct{}

	deliver sync.Mutex // held while the handler is told; taken before Client.mu
	epochs  map[int]uint64
}

func (w *want) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// Enter says that the agent needs an image with that many blocks in each stripe; ref is the name by which people know it. The
// Client sees to it that the agent is in the image's tree until it leaves, whatever happens to schedulers meanwhile.
func (c *Client) Enter(image digest.Digest, ref string, total []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wants[image]
	if w == nil {
		w = &want{image: image, woken: make(chan struct{}, 1), epochs: map[int]uint64{}}
		c.wants[image] = w
	}
	if !w.needed || !slices.Equal(w.total, total) {
		w.link, w.entered = nil, false // whoever left has forgotten its places, and is told again
	}
	w.ref, w.total, w.needed = ref, slices.Clone(total), true
	c.start(w)
	w.wake()
}

// start begins to pursue a want if that can be done now. Callers hold mu.
func (c *Client) start(w *want) {
	if c.running != nil && !w.started {
		w.started = true
		ctx := c.running
		c.tasks.Go(func() { c.pursue(ctx, w) })
	}
}

// Leave says that the agent does not need the image any more. When it returns, the handler is not told of the image any more,
// unless the image is entered again. It must not be called by the handler.
func (c *Client) Leave(image digest.Digest) {
	c.mu.Lock()
	w := c.wants[image]
	c.mu.Unlock()
	if w == nil {
		return
	}
	w.deliver.Lock() // waits for a call of the handler
	defer w.deliver.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	w.needed = false
	w.wake()
	if !w.started {
		delete(c.wants, image)
	}
}

// pursue keeps the agent in the tree as long as it needs the image, and gets it out of it then.
func (c *Client) pursue(ctx context.Context, w *want) {
	hops := 0
	for pause := newPause(); ctx.Err() == nil; {
		if done := c.abandon(ctx, w); done {
			return
		}
		l := c.linkFor(w)
		if l == nil {
			await(ctx, w.woken)
			continue
		}
		switch err := c.enter(ctx, l, w); {
		case err == nil:
			hops, pause = 0, newPause()
			c.stay(ctx, l, w)
		case c.redirect(l, w, err) && hops < maxHops:
			hops++
		default:
			hops = 0
			pause.waitOr(ctx, w.woken)
		}
		c.release(l)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w.started, w.link, w.entered = false, nil, false
}

// await waits for a channel or the end of ctx.
func await(ctx context.Context, woken <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-woken:
	}
}

// linkFor returns the link to enter an image by: to its owner if that is known, otherwise the one that is up anyway.
func (c *Client) linkFor(w *want) *link {
	c.mu.Lock()
	url := w.owner
	if url == "" && c.home != nil {
		url = c.home.url
	}
	c.mu.Unlock()
	if url == "" {
		return nil
	}
	return c.acquire(url)
}

// enter asks the scheduler for places.
func (c *Client) enter(ctx context.Context, l *link, w *want) error {
	select {
	case <-l.up:
	case <-l.dead:
		return l.err
	}
	c.mu.Lock()
	w.link, w.entered = l, false
	request := EnterRequest{w.image, w.ref, w.total}
	c.mu.Unlock()
	if err := call(ctx, l.http, http.MethodPost, l.url+PathEnter, l.hello.Session, request, nil); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.link == l {
		w.entered, w.owner = true, ""
		c.settle(l)
	}
	return nil
}

// maxHops bounds how often schedulers can send the agent on before it waits: while they change, each may take the other for the
// owner.
const maxHops = 2

// redirect draws the conclusions from an attempt to enter that failed. It returns true if another scheduler is to be asked.
func (c *Client) redirect(l *link, w *want, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.link == l {
		w.link = nil
	}
	w.owner = ""
	switch failed, _ := errors.AsType[*callError](err); {
	case failed == nil: // whoever has a session knows the owner
	case failed.status == http.StatusMisdirectedRequest:
		w.owner = failed.Owner
	default:
		w.owner = c.known[rand.IntN(len(c.known))]
	}
	level := slog.LevelDebug
	if status := statusOf(err); status >= 400 && status < 500 && status != http.StatusMisdirectedRequest && status != http.StatusTooManyRequests {
		level = slog.LevelWarn // nobody will say otherwise later
	}
	c.cfg.Log.Log(context.Background(), level, "not entered", "image", w.image, "scheduler", l.url, "owner", w.owner, "err", err)
	return statusOf(err) == http.StatusMisdirectedRequest && w.owner != "" && w.owner != l.url
}

// stay returns when the image is to be entered again, or left.
func (c *Client) stay(ctx context.Context, l *link, w *want) {
	for ctx.Err() == nil {
		c.mu.Lock()
		in := w.needed && w.link == l && w.entered
		c.mu.Unlock()
		if !in {
			return
		}
		await(ctx, w.woken)
	}
}

// abandon gets the agent out of a tree that it does not need any more. It returns false if the image is needed.
func (c *Client) abandon(ctx context.Context, w *want) bool {
	for pause := newPause(); ctx.Err() == nil; pause.wait(ctx) {
		c.mu.Lock()
		l := w.link
		if w.needed {
			c.mu.Unlock()
			return false
		}
		if l == nil || !l.isUp() { // its scheduler learns it when the next session begins
			delete(c.wants, w.image)
			c.mu.Unlock()
			return true
		}
		c.mu.Unlock()
		if err := call(ctx, l.http, http.MethodPost, l.url+PathLeave, l.hello.Session, LeaveRequest{w.image}, nil); err == nil || statusOf(err)/100 == 4 {
			c.mu.Lock()
			w.link, w.entered = nil, false
			clear(w.epochs)
			c.mu.Unlock()
		}
	}
	return false
}

// moved says that the agent is not in a tree of that scheduler any more.
func (c *Client) moved(l *link, m Moved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.wants[m.Image]; w != nil && w.link == l && w.entered {
		w.link, w.entered, w.owner = nil, false, m.Owner
		w.wake()
	}
}

// place hands a position to the agent, if it is of the scheduler that counts, and not older than what the agent knows.
func (c *Client) place(l *link, p Position) {
	c.mu.Lock()
	w := c.wants[p.Image]
	c.mu.Unlock()
	if w == nil || p.Stripe < 0 || p.Stripe >= p.Stripes || p.Stripes != l.hello.Stripes {
		return
	}
	w.deliver.Lock()
	defer w.deliver.Unlock()
	c.mu.Lock()
	current := w.needed && w.link == l && p.Epoch >= w.epochs[p.Stripe]
	if current {
		w.epochs[p.Stripe] = p.Epoch
	}
	c.mu.Unlock()
	if current {
		c.cfg.Handler.Position(p)
	}
}
