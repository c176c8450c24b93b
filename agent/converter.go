package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/scheduler/api"
)

// A converter makes block images of pulled images that have none, one at a time, for the next time they are pulled. An agent alone
// converts what it pulls. In a cluster the schedulers give each image to one agent, and the others ask until it is done.
type converter struct {
	dir     string // Root/converted: an OCI image layout for every image, and the cache of converted layers
	key     ed25519.PrivateKey
	content func(ctx context.Context, o origin, source digest.Digest) (convert.Content, error)
	known   func(ctx context.Context, o origin, source digest.Digest) bool // there is a block image that this node would use
	done    func(ctx context.Context, o origin, source digest.Digest, manifest []byte) error
	found   func(source digest.Digest) // another agent has converted the image
	cluster *shared                    // nil: the agent is alone
	// push puts a block image beside its source. Nil: it is not to.
	push    func(ctx context.Context, o origin, r *convert.Result) error
	again   time.Duration // how often it is asked whether another agent is done
	wait    time.Duration // how long a pull may wait for its conversion; 0: not at all
	metrics *metrics
	log     *slog.Logger

	wake chan struct{}

	mu    sync.Mutex
	jobs  map[digest.Digest]*job
	inept map[digest.Digest]time.Time // images that this node cannot convert, and until when that is believed
}

// shared is what a converter has to do with the rest of its cluster.
type shared struct {
	schedulers schedulers
	address    func() api.Peer
	holdings   *holdings
}

// schedulers know who converts what. An api.Client asks them.
type schedulers interface {
	Conversion(context.Context, api.ConvertRequest) (api.Conversion, error)
	Converted(context.Context, api.ConvertedRequest) error
	Holding(context.Context, api.HoldingRequest) error
}

// job is an image to be converted.
type job struct {
	origin origin
	source digest.Digest
	// lost says that its block image is in use here and nobody holds it any more, proxied that a client of the proxy pulls it.
	lost, proxied bool
	told          bool // that it is being converted

	added time.Time
	due   time.Time     // when to look at it, again
	ended chan struct{} // closed when it was converted, or is not going to be
}

const (
	// maxJobs bounds the conversions that wait. What does not find room is converted when it is pulled again.
	maxJobs = 64
	// jobPatience is how long the agent asks after a conversion of another one.
	jobPatience = time.Hour
	// ineptPause is how long an image is left to others that this node could not convert.
	ineptPause = 10 * time.Minute
	// clientPatience is how long it is waited for an image that this node may not read itself to come through the proxy.
	clientPatience = 2 * time.Minute
)

// add queues the conversion of an image, without waiting.
func (c *converter) add(o origin, source digest.Digest) { c.queue(job{origin: o, source: source}) }

// remake queues it for a block image that is in use here and lost elsewhere.
func (c *converter) remake(o origin) {
	c.queue(job{origin: origin{Ref: o.Ref, Repository: o.Repository}, source: o.Cluster, lost: true})
}

func (c *converter) queue(j job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.jobs[j.source] != nil || now.Before(c.inept[j.source]) {
		return
	}
	if len(c.jobs) >= maxJobs {
		c.log.Warn("image not converted, too many wait already", "ref", j.origin.Ref)
		return
	}
	j.added, j.due, j.ended = now, now, make(chan struct{})
	c.jobs[j.source] = &j
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// await waits until the conversion of an image has ended, as long as a pull may. It returns false if there is nothing to wait for.
func (c *converter) await(ctx context.Context, source digest.Digest) bool {
	j := c.job(source)
	if j == nil {
		return false
	}
	ctx, cancel := context.WithDeadline(ctx, j.added.Add(c.wait))
	defer cancel()
	return j.await(ctx)
}

// finish waits until the conversion of an image has ended, or ctx has.
func (c *converter) finish(ctx context.Context, source digest.Digest) {
	if j := c.job(source); j != nil {
		j.await(ctx)
	}
}

// job returns the conversion of an image that is due or under way, nil if there is none.
func (c *converter) job(source digest.Digest) *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jobs[source]
}

// await returns true when the conversion has ended, false if ctx has.
func (j *job) await(ctx context.Context) bool {
	select {
	case <-j.ended:
		return true
	case <-ctx.Done():
		return false
	}
}

// run converts until ctx ends.
func (c *converter) run(ctx context.Context) {
	for ctx.Err() == nil {
		j, pause := c.next()
		if j == nil {
			c.sleep(ctx, pause)
			continue
		}
		if c.attempt(ctx, j) && time.Since(j.added) < jobPatience {
			c.mu.Lock()
			j.due = time.Now().Add(c.again)
			c.mu.Unlock()
			continue
		}
		c.end(j)
	}
	for _, j := range c.left() {
		c.end(j)
	}
}

// next returns the job that is due, or nil and how long none is.
func (c *converter) next() (*job, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var first *job
	for _, j := range c.jobs {
		if first == nil || j.due.Before(first.due) {
			first = j
		}
	}
	if first == nil {
		return nil, time.Hour
	}
	if pause := time.Until(first.due); pause > 0 {
		return nil, pause
	}
	return first, 0
}

func (c *converter) sleep(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.wake:
	case <-ctx.Done():
	}
}

func (c *converter) left() []*job {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.jobs))
}

func (c *converter) end(j *job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, j.source)
	close(j.ended)
}

// attempt converts an image if that is this node's to do. It returns true if the job is to be looked at again.
func (c *converter) attempt(ctx context.Context, j *job) (again bool) {
	if !j.lost && c.known(ctx, j.origin, j.source) {
		c.found(j.source)
		return false
	}
	if c.cluster == nil {
		return c.convertAlone(ctx, j)
	}
	answer, err := c.cluster.schedulers.Conversion(ctx, api.ConvertRequest{Source: j.source, Willing: true})
	switch {
	case errors.Is(err, api.ErrUnknown):
		c.log.Warn("image not converted: the schedulers are older than this agent", "ref", j.origin.Ref, "err", err)
		return false
	case err != nil:
		c.log.Debug("no scheduler says who converts an image", "ref", j.origin.Ref, "err", err)
		return true
	case answer.State == api.ConversionYours:
		return c.convertLeased(ctx, j)
	case answer.State == api.ConversionTheirs:
		return true
	case answer.State == api.ConversionDone:
		c.found(j.source)
	case answer.State == api.ConversionFailed:
		c.log.Info("image not converted, another agent failed", "ref", j.origin.Ref, "source", j.source, "not before", answer.NotBefore, "why", answer.Why)
	}
	return false
}

// report says how a conversion ended, and whether it is to be tried again.
func (c *converter) report(ctx context.Context, j *job, start time.Time, err error) (again bool) {
	switch {
	case isInept(err) && !errors.Is(err, errPlatform) && j.proxied && time.Since(j.added) < clientPatience:
		c.log.Debug("image not converted yet", "ref", j.origin.Ref, "source", j.source, "err", err)
		return true
	case err == nil:
		c.metrics.conversions.WithLabelValues("done").Inc()
		c.log.Info("image converted for the next pull", "ref", j.origin.Ref, "source", j.source, "took", time.Since(start))
	case errors.Is(err, api.ErrNoLease):
		c.metrics.conversions.WithLabelValues("lost").Inc()
		c.log.Info("conversion given up, another agent does it", "ref", j.origin.Ref, "source", j.source, "err", err)
	case ctx.Err() == nil && isInept(err):
		c.leave(j.source)
		c.metrics.conversions.WithLabelValues("refused").Inc()
		c.log.Info("image not converted by this node", "ref", j.origin.Ref, "source", j.source, "err", err)
	case ctx.Err() == nil:
		c.metrics.conversions.WithLabelValues("failed").Inc()
		c.log.Warn("image not converted", "ref", j.origin.Ref, "source", j.source, "err", err)
	}
	return errors.Is(err, api.ErrNoLease)
}

// isInept says whether another node may be able to convert the image though this one is not.
func isInept(err error) bool {
	return errors.Is(err, blockfmt.ErrDenied) || errors.Is(err, blockfmt.ErrNotFound) || errors.Is(err, errPlatform)
}

// leave leaves an image to others for a while.
func (c *converter) leave(source digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(c.inept, func(_ digest.Digest, until time.Time) bool { return now.After(until) })
	if len(c.inept) < 16*maxJobs {
		c.inept[source] = now.Add(ineptPause)
	}
}
