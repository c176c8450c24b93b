package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/scheduler/api"
)

// errPlatform says that an image is not for this machine.
var errPlatform = errors.New("it is for another platform")

// renewEvery is how often the agent says that it goes on converting.
const renewEvery = api.ConversionLease / 4

// converted is a block image in its layout on this node.
type converted struct {
	layout   string
	manifest []byte
	pushed   string // the repository where it is; empty: none
}

// convertAlone converts an image for this node. It returns true if that is to be tried again.
func (c *converter) convertAlone(ctx context.Context, j *job) (again bool) {
	start := time.Now()
	made, err := c.convert(ctx, j)
	if err == nil {
		err = c.adopt(ctx, j, made)
	}
	return c.report(ctx, j, start, err)
}

// adopt has this node use what it made.
func (c *converter) adopt(ctx context.Context, j *job, made converted) error {
	o := origin{Ref: j.origin.Ref, Repository: j.origin.Repository, Layout: made.layout}
	return c.done(ctx, o, j.source, made.manifest)
}

// convertLeased converts an image for the cluster, which has given this agent the lease, and keeps it for others unless it is in the
// registry. It returns true if the job is to be looked at again.
func (c *converter) convertLeased(ctx context.Context, j *job) (again bool) {
	start := time.Now()
	if !j.told {
		c.log.Info("image is being converted for the cluster", "ref", j.origin.Ref, "source", j.source)
		j.told = true
	}
	made, err := c.underLease(ctx, j)
	if err == nil && made.pushed == "" {
		err = c.cluster.holdings.keep(j.source)
	}
	err = c.tell(ctx, j, made, err)
	if err == nil {
		err = c.adopt(ctx, j, made)
	}
	if err != nil {
		c.cluster.holdings.drop(j.source)
	}
	return c.report(ctx, j, start, err)
}

const (
	// tellPatience bounds the time in which a scheduler must take the result: the lease is not renewed meanwhile.
	tellPatience, tellPause = api.ConversionLease / 2, time.Second
	maxReason               = 512 // bytes
)

// tell tells the schedulers how the conversion ended, and returns its error or theirs.
func (c *converter) tell(ctx context.Context, j *job, made converted, err error) error {
	if errors.Is(err, api.ErrNoLease) {
		return err
	}
	r := api.ConvertedRequest{Source: j.source, Agent: c.cluster.address()}
	switch {
	case err == nil:
		r.Image, r.Pushed = digest.FromBytes(made.manifest), made.pushed
	case ctx.Err() == nil && !isInept(err): // else the lease goes back, for others
		text := err.Error()
		r.Failed = text[:min(len(text), maxReason)]
	}
	if told := c.tellSomebody(ctx, r); told != nil && err == nil {
		return fmt.Errorf("the schedulers do not take the block image: %w", told)
	}
	return err
}

// tellSomebody tries until a scheduler has heard, or there is no point in it any more; once if ctx has ended.
func (c *converter) tellSomebody(ctx context.Context, r api.ConvertedRequest) error {
	telling, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellPatience)
	defer cancel()
	pause := time.NewTicker(tellPause)
	defer pause.Stop()
	for {
		err := c.cluster.schedulers.Converted(telling, r)
		if err == nil || errors.Is(err, api.ErrNoLease) || ctx.Err() != nil {
			return err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
		case <-telling.Done():
			return err
		}
	}
}

// underLease converts an image while the lease on it is renewed. The error is api.ErrNoLease if it was lost.
func (c *converter) underLease(ctx context.Context, j *job) (converted, error) {
	leased, cancel := context.WithCancelCause(ctx)
	var renewing sync.WaitGroup
	renewing.Go(func() { c.renew(leased, cancel, j.source) })
	made, err := c.convert(leased, j)
	lost := context.Cause(leased)
	cancel(nil)
	renewing.Wait()
	if errors.Is(lost, api.ErrNoLease) {
		err = lost
	}
	return made, err
}

// renew renews the lease until ctx ends, and cancels it when the lease is another's.
func (c *converter) renew(ctx context.Context, cancel context.CancelCauseFunc, source digest.Digest) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		answer, err := c.cluster.schedulers.Conversion(ctx, api.ConvertRequest{Source: source, Willing: true})
		if err == nil && answer.State != api.ConversionYours { // without an answer the end shows whose it is
			cancel(api.ErrNoLease)
			return
		}
	}
}

// convert makes the block image in its layout, and pushes it if it may.
func (c *converter) convert(ctx context.Context, j *job) (made converted, err error) {
	made.layout = c.layout(j.source)
	content, err := c.content(ctx, j.origin, j.source)
	if err != nil {
		return made, err
	}
	src, err := convert.OpenContent(ctx, fmt.Sprintf("%s@%s", j.origin.Repository, j.source), j.source, content)
	if err != nil {
		return made, err
	}
	if src.Platform.Architecture != "" && !platforms.Default().Match(src.Platform) {
		return made, fmt.Errorf("%s: %w", platforms.Format(src.Platform), errPlatform)
	}
	result, err := convert.Convert(ctx, src, convert.Options{
		Key: c.key, CacheDir: filepath.Join(c.dir, "layers"), Workers: 1, Logger: c.log})
	if err != nil {
		return made, err
	}
	defer debug.FreeOSMemory() // a conversion takes more than the agent does in all its other life
	defer result.Close()       //nolint:errcheck // what it holds is a cache
	if err := os.RemoveAll(made.layout); err != nil {
		return made, err
	}
	if err := result.WriteLayout(made.layout, ""); err != nil {
		return made, err
	}
	made.manifest = result.Manifest
	if c.pushes(ctx, j, result) {
		made.pushed = j.origin.Repository
	}
	return made, nil
}

// layout is where the block image of a source lies on the node that made it.
func (c *converter) layout(source digest.Digest) string {
	return filepath.Join(c.dir, source.Encoded())
}

// pushes puts the block image into the registry if it may, and returns whether it is there.
func (c *converter) pushes(ctx context.Context, j *job, r *convert.Result) bool {
	if c.push == nil {
		return false
	}
	err := c.push(ctx, j.origin, r)
	if err != nil && ctx.Err() == nil {
		c.log.Warn("block image not pushed, it stays on this node", "ref", j.origin.Ref, "source", j.source, "err", err)
	}
	return err == nil
}
