package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"
)

// helloTimeout bounds the wait for a session.
const helloTimeout = 10 * time.Second

// link is a session with one scheduler, from the attempt to its end. There is one for a scheduler at a time.
type link struct {
	client *Client
	url    string
	http   *http.Client
	cancel context.CancelCauseFunc
	up     chan struct{} // closed when the session is open
	dead   chan struct{} // closed when it is over, or did not come about

	hello Hello // set before up is closed
	refs  int   // wants and home; guarded by Client.mu
	err   error // set before dead is closed
}

func (l *link) isUp() bool {
	select {
	case <-l.dead:
		return false
	default:
	}
	select {
	case <-l.up:
		return true
	default:
		return false
	}
}

// acquire returns the link to a scheduler, a new one if there is none that lives; nil when Run has ended. Call release when done.
func (c *Client) acquire(url string) *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running == nil {
		return nil
	}
	l := c.links[url]
	if l == nil {
		ctx, cancel := context.WithCancelCause(c.running)
		l = &link{client: c, url: url, http: newHTTP(c.id.tls()), cancel: cancel, up: make(chan struct{}), dead: make(chan struct{})}
		c.links[url] = l
		c.tasks.Go(func() { l.run(ctx) })
	}
	l.refs++
	return l
}

var errIdle = errors.New("nobody needs it")

// release ends a link that nobody needs any more.
func (c *Client) release(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.refs--; l.refs == 0 {
		l.cancel(errIdle)
	}
}

// run opens the session and follows it to its end.
func (l *link) run(ctx context.Context) {
	err := l.follow(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	l.cancel(err)
	l.http.CloseIdleConnections()
	l.report(ctx, err)
	l.err = err
	l.client.bury(l)
}

// report says why there is no session, if that is a change or somebody looks for a fault.
func (l *link) report(ctx context.Context, err error) {
	level := slog.LevelDebug
	if l.isUp() && !errors.Is(err, errIdle) && !errors.Is(err, context.Canceled) {
		level = slog.LevelWarn
	}
	l.client.cfg.Log.Log(ctx, level, "no session with scheduler", "scheduler", l.url, "err", err)
}

// bury takes a link that ended out of use, and wakes whoever used it.
func (c *Client) bury(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[l.url] == l {
		delete(c.links, l.url)
	}
	close(l.dead)
	for _, w := range c.wants {
		if w.link == l {
			w.link = nil
			w.wake()
		}
	}
}

func (l *link) follow(ctx context.Context) error {
	late := time.AfterFunc(helloTimeout, func() { l.cancel(errors.New("it does not open a session")) })
	defer late.Stop()
	answer, err := open(ctx, l.http, http.MethodPost, l.url+PathSession, "", l.client.sessionRequest())
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(make([]byte, 0, 4<<10), MaxEvent)
	for lines.Scan() {
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		if err := l.handle(e, late); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the scheduler ended the session")
}

func (l *link) handle(e Event, late *time.Timer) error {
	switch {
	case !l.isUp() && e.Hello != nil:
		late.Stop()
		return l.greet(*e.Hello)
	case !l.isUp():
		return errors.New("the session does not begin with a hello")
	case e.Position != nil:
		l.client.place(l, *e.Position)
	case e.Moved != nil:
		l.client.moved(l, *e.Moved)
	case e.Revoked != nil:
		l.client.revoke(*e.Revoked)
	case e.Schedulers != nil:
		l.client.learn(*e.Schedulers)
	case e.Bye != "":
		return fmt.Errorf("the scheduler ended the session: %s", e.Bye)
	}
	return nil
}

func (l *link) greet(h Hello) error {
	if !slices.Contains([]int{1, 2, 4}, h.Stripes) || h.Interval < time.Millisecond || h.Interval > time.Hour {
		return fmt.Errorf("the session begins with %+v", h)
	}
	l.hello = h
	l.client.stripes.Store(int32(h.Stripes))
	l.client.tried.set()
	l.client.learn(h.Schedulers)
	l.client.revoke(h.Revoked)
	l.client.cfg.Log.Info("session with scheduler", "scheduler", l.url)
	close(l.up)
	return nil
}

func (c *Client) revoke(peers []string) {
	changed, err := c.id.revoke(peers)
	if err != nil {
		c.cfg.Log.Error("cannot keep the list of revoked peers", "err", err)
	}
	if changed {
		c.cfg.Handler.Revoked(slices.Clone(peers))
	}
}

// sessionRequest says who the agent is and what it needs.
func (c *Client) sessionRequest() SessionRequest {
	c.mu.Lock()
	known := c.last.Agent.ID != ""
	c.mu.Unlock()
	if !known {
		c.remember(c.cfg.Heartbeat())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := SessionRequest{Heartbeat: c.last}
	for image, w := range c.wants {
		if w.needed {
			r.Wanted = append(r.Wanted, image)
		}
	}
	return r
}

// remember keeps what a heartbeat says of the agent itself.
func (c *Client) remember(h Heartbeat) {
	h.Images = nil
	h.Agent.ID = c.id.peer
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = h
}

// stayHome keeps one session up, with whatever scheduler answers.
func (c *Client) stayHome(ctx context.Context) {
	failures := 0
	for pause := newPause(); ctx.Err() == nil; {
		for _, url := range c.homes() {
			if c.live(ctx, url) {
				failures, pause = 0, newPause()
				break
			}
		}
		c.tried.set()
		if failures++; failures == 3 && ctx.Err() == nil {
			c.cfg.Log.Warn("no scheduler is reachable, still trying; trees go on without", "schedulers", c.schedulers())
		}
		if c.id.valid(time.Now()) || c.cfg.Token == "" {
			pause.wait(ctx)
		} else if err := c.join(ctx); err != nil {
			c.cfg.Log.Error("cannot join the cluster again", "err", err)
		}
	}
}

// homes lists schedulers, first those with which there is a session already.
func (c *Client) homes() []string {
	list := c.schedulers()
	if l := c.anyLink(); l != nil {
		list = append([]string{l.url}, list...)
	}
	return list
}

// live keeps a session with a scheduler, or with one to which home moves, until it ends. It returns false if none came about.
func (c *Client) live(ctx context.Context, url string) bool {
	l := c.acquire(url)
	if l == nil {
		return false
	}
	select {
	case <-l.up:
	case <-l.dead:
		c.release(l)
		return false
	}
	c.mu.Lock()
	c.home = l
	for _, w := range c.wants {
		w.wake()
	}
	c.mu.Unlock()
	for {
		select {
		case <-l.dead:
		case <-ctx.Done():
		}
		c.mu.Lock()
		next := c.home
		if next == l {
			c.home = nil
		}
		c.mu.Unlock()
		if next == l {
			c.release(l)
			return true
		}
		l = next
	}
}

// settle makes a link that an image uses the one that is kept, if the one that was kept has no other purpose. Callers hold mu.
func (c *Client) settle(l *link) {
	if c.home == nil || c.home == l || c.home.refs > 1 {
		return
	}
	c.home.refs--
	c.home.cancel(errIdle)
	c.home = l
	l.refs++
}

// Beat sends heartbeats now, because something happened that a scheduler should know at once, such as a parent's failure.
func (c *Client) Beat() {
	select {
	case c.beat <- struct{}{}:
	default:
	}
}

// leastInterval lies between heartbeats, however many things happen.
const leastInterval = 50 * time.Millisecond

// heartbeats asks the agent once an interval how it is, and tells all schedulers with which there are sessions.
func (c *Client) heartbeats(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	for {
		_, interval := c.upLinks()
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-c.beat:
			timer.Stop()
		}
		links, _ := c.upLinks()
		if len(links) == 0 {
			continue
		}
		h := c.cfg.Heartbeat()
		c.remember(h)
		for _, l := range links {
			sending.Go(func() { l.heartbeat(ctx, h) })
		}
		sleep(ctx, leastInterval)
	}
}

// upLinks returns the sessions and the shortest of their intervals.
func (c *Client) upLinks() (links []*link, interval time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	interval = time.Second
	for _, l := range c.links {
		if l.isUp() {
			links = append(links, l)
			interval = min(interval, l.hello.Interval)
		}
	}
	return links, interval
}

// heartbeat tells the scheduler how the agent is. A session whose scheduler does not answer is over.
func (l *link) heartbeat(ctx context.Context, h Heartbeat) {
	ctx, cancel := context.WithTimeout(ctx, max(2*l.hello.Interval, time.Second))
	defer cancel()
	h.Agent.ID = l.client.id.peer
	h.Images = l.client.imagesOf(l, h.Images)
	var answer HeartbeatResponse
	err := call(ctx, l.http, http.MethodPost, l.url+PathHeartbeat, l.hello.Session, h, &answer)
	switch status := statusOf(err); {
	case err == nil:
		for _, image := range answer.Unknown {
			l.client.moved(l, Moved{Image: image})
		}
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled):
	default:
		l.cancel(fmt.Errorf("heartbeat: %w", err))
	}
}

// imagesOf returns the memberships that concern a scheduler: all of them, because it takes the agent out of trees of which it
// does not hear for long.
func (c *Client) imagesOf(l *link, said []Membership) []Membership {
	c.mu.Lock()
	defer c.mu.Unlock()
	var own []Membership
	for image, w := range c.wants {
		if w.link != l || !w.entered {
			continue
		}
		i := slices.IndexFunc(said, func(m Membership) bool { return m.Image == image })
		if i < 0 {
			own = append(own, Membership{Image: image})
		} else {
			own = append(own, said[i])
		}
	}
	return own
}
