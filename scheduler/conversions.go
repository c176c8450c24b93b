package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// failedPause is how long an image that could not be converted is left alone.
const failedPause = 10 * time.Minute

// conversion is what becomes of an image that has no block image. Any scheduler may change it, if nobody has since it was read. The times are of
// the schedulers' clocks, which need not agree better than to some seconds.
type conversion struct {
	State api.ConversionState `json:"state"` // yours (the lease is Agent's), done or failed
	Agent string              `json:"agent"` // peer ID of who converts or has converted it
	Image digest.Digest       `json:"image,omitempty"`
	// Pushed is the repository where it is; if empty, Agent holds it.
	Pushed string    `json:"pushed,omitempty"`
	Why    string    `json:"why,omitempty"`
	Until  time.Time `json:"until,omitzero"` // the lease, or the pause after a failure
}

// holder is an agent that keeps what it converted for others.
type holder struct {
	Peer api.Peer  `json:"peer"`
	Seen time.Time `json:"seen"`
}

// known is a conversion as it was read, with what is known of its agent.
type known struct {
	conversion
	key      string
	revision int64   // 0: there is no record
	holder   *holder // nil: nobody holds it, or whoever did is gone
	expelled bool    // the agent is revoked, or its membership ended
}

// convert answers who converts an image, and gives the lease to a willing asker if nobody does.
func (k *keeper) convert(ctx context.Context, peer, session string, r api.ConvertRequest) (api.Conversion, error) {
	for range 3 { // somebody else may be asking in this moment
		was, err := k.readConversion(ctx, peer, session, r.Source)
		if err != nil {
			return api.Conversion{}, err
		}
		now := time.Now()
		answer := was.answer(peer, r, now)
		if answer.State != api.ConversionNone && answer.State != api.ConversionYours {
			return answer, nil
		}
		if !r.Willing {
			return api.Conversion{State: api.ConversionNone}, nil
		}
		lease := conversion{State: api.ConversionYours, Agent: peer, Until: now.Add(api.ConversionLease)}
		if err = k.writeConversion(ctx, was, &lease); err == nil {
			if answer.State == api.ConversionNone {
				k.log.Info("an agent converts an image", "source", r.Source, "peer", peer)
			}
			return api.Conversion{State: api.ConversionYours}, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return api.Conversion{}, err
		}
	}
	return api.Conversion{State: api.ConversionTheirs}, nil
}

// answer says what an asker is told of a conversion: None if it is anybody's, Yours if it is the asker's already.
func (c *known) answer(asker string, r api.ConvertRequest, now time.Time) api.Conversion {
	none := api.Conversion{State: api.ConversionNone}
	switch {
	case c.revision == 0, c.expelled:
		return none
	case c.State == api.ConversionDone && c.Image == r.Missing:
		return none
	case c.State == api.ConversionDone && c.Pushed != "":
		return api.Conversion{State: api.ConversionDone, Image: c.Image, Pushed: c.Pushed}
	case c.State == api.ConversionDone:
		if c.holder == nil || now.Sub(c.holder.Seen) > api.HolderTimeout {
			return none
		}
		return api.Conversion{State: api.ConversionDone, Image: c.Image, Holder: &c.holder.Peer}
	case !now.Before(c.Until):
		return none
	case c.State == api.ConversionFailed:
		return api.Conversion{State: api.ConversionFailed, Why: c.Why, NotBefore: c.Until}
	case c.Agent == asker:
		return api.Conversion{State: api.ConversionYours}
	}
	return api.Conversion{State: api.ConversionTheirs}
}

// converted notes how a conversion ended, if it is the agent's.
func (k *keeper) converted(ctx context.Context, peer, session string, r api.ConvertedRequest) error {
	was, err := k.readConversion(ctx, peer, session, r.Source)
	if err != nil {
		return err
	}
	now := time.Now()
	if was.answer(peer, api.ConvertRequest{}, now).State != api.ConversionYours {
		return fmt.Errorf("%w: the conversion of %s is not %s's", errNoLease, r.Source, peer)
	}
	var next *conversion
	var also []store.Item
	switch {
	case r.Failed != "":
		next = &conversion{State: api.ConversionFailed, Agent: peer, Why: r.Failed, Until: now.Add(failedPause)}
	case r.Image != "":
		next = &conversion{State: api.ConversionDone, Agent: peer, Image: r.Image, Pushed: r.Pushed}
		also = append(also, item(holdersPrefix+peer, holder{r.Agent, now}))
	}
	err = k.writeConversion(ctx, was, next, also...)
	switch {
	case errors.Is(err, store.ErrConflict):
		return fmt.Errorf("%w: the conversion of %s was just given to another agent", errNoLease, r.Source)
	case err != nil:
		return err
	case next == nil:
		k.log.Info("an agent cannot convert an image, another may", "source", r.Source, "peer", peer)
		k.metrics.conversions.WithLabelValues("returned").Inc()
	default:
		k.log.Info("conversion ended", "source", r.Source, "peer", peer, "image", r.Image, "pushed", r.Pushed, "failed", r.Failed)
		k.metrics.conversions.WithLabelValues(string(next.State)).Inc()
	}
	return nil
}

// holding notes that an agent still keeps what it converted.
func (k *keeper) holding(ctx context.Context, peer, session string, at api.Peer) error {
	if err := k.checkCurrent(peer, session); err != nil {
		return err
	}
	_, err := k.store.Write(ctx, store.Tx{Put: []store.Item{item(holdersPrefix+peer, holder{at, time.Now()})}})
	return err
}

// readConversion reads what is known of a conversion, for an agent that has a session.
func (k *keeper) readConversion(ctx context.Context, peer, session string, source digest.Digest) (*known, error) {
	if err := k.checkCurrent(peer, session); err != nil {
		return nil, err
	}
	was := &known{key: convertedPrefix + source.String()}
	items, err := k.store.Read(ctx, was.key)
	if err != nil || len(items) == 0 {
		return was, err
	}
	was.revision = items[0].Revision
	if was.conversion, err = decode[conversion](items[0]); err != nil {
		return nil, err
	}
	was.expelled = k.isExpelled(was.conversion)
	if was.State != api.ConversionDone || was.Pushed != "" {
		return was, nil
	}
	items, err = k.store.Read(ctx, holdersPrefix+was.Agent)
	if err != nil || len(items) == 0 {
		return was, err
	}
	h, err := decode[holder](items[0])
	was.holder = &h
	return was, err
}

// writeConversion changes a conversion unless somebody else has, to nothing if next is nil.
func (k *keeper) writeConversion(ctx context.Context, was *known, next *conversion, also ...store.Item) error {
	tx := store.Tx{If: []store.Condition{{Key: was.key, Revision: was.revision}}, Put: also}
	if next == nil {
		tx.Delete = []string{was.key}
	} else {
		tx.Put = append(tx.Put, item(was.key, *next))
	}
	_, err := k.store.Write(ctx, tx)
	return err
}

func (k *keeper) checkCurrent(peer, session string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.current(peer, session)
	return err
}

// isExpelled says whether a conversion is void because of its agent: what a revoked one has made counts no more, and a lease ends
// with the session, if that cannot be with another scheduler, or with this one in a moment because it has just started.
func (k *keeper) isExpelled(c conversion) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.revoked[c.Agent] {
		return true
	}
	if c.State != api.ConversionYours || len(k.live) > 1 || time.Since(k.started) < k.cfg.Grace.Duration {
		return false
	}
	a := k.agents[c.Agent]
	return a == nil || a.session == nil && time.Since(a.seen) > k.cfg.Timeout.Duration
}
