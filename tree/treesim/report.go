package treesim

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/xylem-project/xylem/tree/stream"
)

// A Report says how a simulation went. Times are since the work began.
type Report struct {
	Config Config        `json:"config"`
	Took   time.Duration `json:"took"`  // until the last one had what it wanted
	Bound  time.Duration `json:"bound"` // the lower bound of that
	First  Range         `json:"first"` // until an agent had its first block
	Full   Range         `json:"full"`  // until it had all blocks
	Ready  Range         `json:"ready"` // until a program had started
	Reads  Histogram     `json:"reads"`
	Misses Histogram     `json:"misses"` // reads of what the agent did not have
	Spans  []Span        `json:"-"`      // all reads
	// Below are the agents that were below one that crashed, in any stripe.
	Below []stream.PeerID `json:"below,omitempty"`
	// Feeding are the agents that were to feed others at the end, or to read the registry.
	Feeding []stream.PeerID `json:"feeding"`
	Egress  int64           `json:"egress"` // bytes that left the registry
	Failed  int             `json:"failed"` // reads with an error
	Wrong   int             `json:"wrong"`  // blocks that are not what they should be
	Edges   int             `json:"edges"`  // that were open at the end
	Counts  Counts          `json:"counts"`
	Events  []Event         `json:"events"`
}

// Counts are sums over the agents that lived at the end.
type Counts struct {
	Pushed     int64 `json:"pushed"` // blocks
	Asked      int64 `json:"asked"`  // blocks that came because they were wanted
	Duplicates int64 `json:"duplicates"`
	Hedges     int64 `json:"hedges"`
	HedgesWon  int64 `json:"hedgesWon"`
	Stalls     int64 `json:"stalls"`
	CutOffs    int64 `json:"cutOffs"`
	Refused    int64 `json:"refused"`
}

// OverBound is Took as a multiple of the lower bound.
func (r *Report) OverBound() float64 { return float64(r.Took) / float64(r.Bound) }

// OverImage is Egress as a multiple of what each agent got.
func (r *Report) OverImage() float64 { return float64(r.Egress) / float64(r.Config.wanted()) }

// Count returns how many events of a kind there were.
func (r *Report) Count(what string) (n int) {
	for _, e := range r.Events {
		if e.What == what {
			n++
		}
	}
	return n
}

// Range sums up durations.
type Range struct {
	N      int           `json:"n"`
	Min    time.Duration `json:"min"`
	Median time.Duration `json:"median"`
	Max    time.Duration `json:"max"`
}

func rangeOf(list []time.Duration) Range {
	if len(list) == 0 {
		return Range{}
	}
	slices.Sort(list)
	return Range{len(list), list[0], list[len(list)/2], list[len(list)-1]}
}

// A Span is a read.
type Span struct {
	Agent stream.PeerID
	At    time.Duration // since the work began
	Took  time.Duration
}

// An Event is something that happened.
type Event struct {
	At     time.Duration `json:"at"`
	What   string        `json:"what"`
	Whom   string        `json:"whom,omitempty"`
	Detail string        `json:"detail,omitempty"`
}

func (e Event) String() string { return fmt.Sprintf("%v %s %s %s", e.At, e.What, e.Whom, e.Detail) }

// log notes an event.
func (w *world) log(what, whom, detail string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note(what, whom, detail)
}

// note is log; mu is held.
func (w *world) note(what, whom, detail string) {
	if !w.ending {
		w.events = append(w.events, Event{w.net.Now() - w.began, what, whom, detail})
	}
}

// A Histogram counts durations in buckets, each a twentieth wider than the one before. The zero value is empty.
type Histogram struct {
	N       int           `json:"n"`
	Max     time.Duration `json:"max"`
	Buckets []int         `json:"buckets,omitempty"` // of 1 µs·1.05^i to 1 µs·1.05^(i+1); what is shorter is in the first
}

const bucketGrowth = 1.05

// Add counts a duration.
func (h *Histogram) Add(d time.Duration) {
	h.N++
	h.Max = max(h.Max, d)
	i := int(max(0, math.Log(float64(d)/1e3)/math.Log(bucketGrowth)))
	if d <= time.Microsecond {
		i = 0
	}
	for len(h.Buckets) <= i {
		h.Buckets = append(h.Buckets, 0)
	}
	h.Buckets[i]++
}

// Quantile returns a duration, a twentieth too long at most, that the part q of all is not longer than.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := int(math.Ceil(q * float64(h.N)))
	for i, n := range h.Buckets {
		if left -= n; left <= 0 {
			if i == 0 {
				return 0
			}
			return min(h.Max, time.Duration(1e3*math.Pow(bucketGrowth, float64(i+1))))
		}
	}
	return h.Max
}

func (h Histogram) String() string {
	return fmt.Sprintf("%d: p50 %v, p99 %v, max %v", h.N, h.Quantile(0.5), h.Quantile(0.99), h.Max)
}

// Slowest returns how long the reads took, apart from the slowest hundredth, that some agents waited for within a time. All agents
// if none are named.
func (r *Report) Slowest(agents []stream.PeerID, from, to time.Duration) time.Duration {
	var h Histogram
	for _, s := range r.Spans {
		if s.At < to && s.At+s.Took > from && (agents == nil || slices.Contains(agents, s.Agent)) {
			h.Add(s.Took)
		}
	}
	return h.Quantile(0.99)
}

// report sums up, when all has ended.
func (w *world) report() *Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &Report{Config: w.cfg, Bound: w.cfg.LowerBound(), Ready: rangeOf(w.ready), Reads: w.reads, Misses: w.misses, Spans: w.spans, Below: w.below,
		Egress: w.net.Sent(registryID), Failed: w.failed, Wrong: w.wrong, Edges: w.net.Edges(), Counts: w.counts, Events: w.events}
	var first, full []time.Duration
	for _, a := range w.agents {
		if a.first > 0 {
			first = append(first, a.first-w.began)
		}
		if a.full > 0 {
			full = append(full, a.full-w.began)
		}
		r.Wrong += a.store.wrong()
	}
	r.Feeding = w.owner.feeding()
	r.First, r.Full = rangeOf(first), rangeOf(full)
	r.Took = r.Full.Max
	if w.cfg.Programs.Count > 0 {
		r.Took = r.Ready.Max
	}
	return r
}

// count adds up what a node did.
func (c *Counts) count(n *stream.Counters) {
	c.Pushed += n.BlocksDown[stream.LanePush].Load()
	c.Asked += n.BlocksDown[stream.LaneDemand].Load() + n.BlocksDown[stream.LaneBackground].Load()
	c.Duplicates += n.Duplicates.Load()
	c.Hedges += n.Hedges.Load()
	c.HedgesWon += n.HedgesWon.Load()
	c.Stalls += n.Stalls.Load()
	c.CutOffs += n.CutOffs.Load()
	c.Refused += n.Refused.Load()
}

// Write writes the report as JSON.
func (r *Report) Write(to io.Writer) error {
	enc := json.NewEncoder(to)
	enc.SetIndent("", "\t")
	return enc.Encode(r)
}

// ReadReport reads a report that was written: Simulate runs its Config again.
func ReadReport(from io.Reader) (*Report, error) {
	r := new(Report)
	if err := json.NewDecoder(from).Decode(r); err != nil {
		return nil, fmt.Errorf("treesim: report: %w", err)
	}
	return r, nil
}
