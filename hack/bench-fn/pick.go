package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/scheduler/placement"
)

const (
	// The size of what is decided about.
	pickInstances = 1000
	pickColours   = 100_000
	// picks in a sample of one goroutine, and samples in a round.
	picks   = 20 * pickColours
	samples = 5
)

var pickRows = []figures.Row{
	figures.AtMost("pick_nanoseconds", "a decision of the adaptive policy, 1,000 instances, 10^5 colours, with a load bound, in ns of a processor", "<= 100", 100),
	figures.AtMost("pick_nanoseconds_hash_slots", "the same of hash-slots", "<= 100", 100),
	figures.AtMost("pick_nanoseconds_least_assigned", "the same of least-assigned", "<= 100", 100),
	figures.Shown("pick_nanoseconds_consistent_hash", "the same of consistent-hash"),
	figures.AtMost("pick_allocs", "allocations in a decision, of all these the most", "0", 0),
	figures.AtLeast("pick_per_second", "decisions of the adaptive policy in a second, one goroutine on each processor", ">= 5,000,000", 5e6),
	figures.Shown("rebalance_seconds", "one Rebalance of it"),
}

// pick measures decisions about colours that are known.
func (b *bench) pick(ctx context.Context) error {
	colours := make([]string, pickColours)
	for i := range colours {
		colours[i] = fmt.Sprintf("colour-%d", i)
	}
	var allocs []float64
	for _, name := range []string{placement.NameAdaptive, placement.NameHashSlots, placement.NameLeastAssigned, placement.NameConsistentHash} {
		p, err := pickPolicy(name, colours)
		if err != nil {
			return err
		}
		var times []float64
		for range b.Rounds * samples {
			if err := ctx.Err(); err != nil {
				return err
			}
			took, n, err := timePicks(p, colours)
			if err != nil {
				return err
			}
			times, allocs = append(times, took), append(allocs, n)
		}
		figure := "pick_nanoseconds"
		if name != placement.NameAdaptive {
			figure += "_" + underscored(name)
		}
		b.Add(figures.Summary(figure, "ns", times))
		if name == placement.NameAdaptive {
			b.together(p, colours)
		}
	}
	most := figures.Summary("pick_allocs", "allocs", allocs)
	most.Value = most.Max
	b.Add(most)
	return nil
}

// pickPolicy returns a policy that knows all colours, with the popularity of Zipf.
func pickPolicy(name string, colours []string) (placement.Policy, error) {
	var cfg placement.Config
	if name == placement.NameAdaptive {
		cfg = placement.Config{LoadBound: 1.25, Warm: 64}
	}
	p, err := placement.New(name, cfg)
	if err != nil {
		return nil, err
	}
	for i := range pickInstances {
		p.Add(placement.Instance(i))
	}
	for i, c := range colours {
		for range 1 + len(colours)/(100*(i+1)) {
			p.Pick(c)
		}
	}
	if r, ok := p.(placement.Rebalancer); ok {
		r.Rebalance()
	}
	return p, nil
}

// timePicks returns the nanoseconds of a processor and the allocations of a pick. It goes through the colours in the order in which they lie in memory, because
// a request's colour has just been read, and through the policy's tables in that of their hashes, which is none.
func timePicks(p placement.Policy, colours []string) (nanoseconds, allocs float64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after runtime.MemStats
	var begin, end unix.Rusage
	runtime.ReadMemStats(&before)
	err = unix.Getrusage(unix.RUSAGE_THREAD, &begin)
	for i := range picks {
		p.Pick(colours[i%len(colours)])
	}
	err = errors.Join(err, unix.Getrusage(unix.RUSAGE_THREAD, &end))
	runtime.ReadMemStats(&after)
	return float64(used(end)-used(begin)) / picks, float64((after.Mallocs - before.Mallocs) / picks), err
}

func used(r unix.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }

// together measures picks on all processors at once, and Rebalance in turn.
func (b *bench) together(p placement.Policy, colours []string) {
	var rates, balances []float64
	procs := runtime.GOMAXPROCS(0)
	for range b.Rounds * samples {
		begin := time.Now()
		var g sync.WaitGroup
		for w := range procs {
			at := w * len(colours) / procs // not all at the same colour
			mine := slices.Concat(colours[at:], colours[:at])
			g.Go(func() {
				for i := range picks {
					p.Pick(mine[i%len(mine)])
				}
			})
		}
		g.Wait()
		rates = append(rates, float64(procs*picks)/time.Since(begin).Seconds())
		begin = time.Now()
		p.(placement.Rebalancer).Rebalance()
		balances = append(balances, time.Since(begin).Seconds())
	}
	b.Add(figures.Summary("pick_per_second", "1/s", rates), figures.Summary("rebalance_seconds", "s", balances))
}

func underscored(name string) string { return strings.ReplaceAll(name, "-", "_") }
