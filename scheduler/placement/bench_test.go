package placement

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
)

const (
	benchInstances = 1000
	benchColours   = 100_000
)

// measured are the policies whose Pick must be fast.
var measured = map[string]Config{NameHashSlots: {}, NameLeastAssigned: {}, NameAdaptive: {LoadBound: 1.25, Warm: 64}}

// warmed returns a policy that knows all colours and some hot ones.
func warmed(t testing.TB, name string, instances, known int) (Policy, []string) {
	p := build(t, name, measured[name], instances)
	colours := make([]string, known) // in memory one after the other, as a request's colour is in the processor's cache
	for i := range colours {
		colours[i] = fmt.Sprintf("colour-%d", i)
		for range 1 + known/(100*(i+1)) {
			p.Pick(colours[i])
		}
	}
	if r, ok := p.(Rebalancer); ok {
		r.Rebalance()
	}
	return p, colours
}

func BenchmarkPick(b *testing.B) {
	for name := range measured {
		p, colours := warmed(b, name, benchInstances, benchColours)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				p.Pick(colours[i%benchColours])
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			b.ReportAllocs()
			var seed atomic.Uint64
			b.RunParallel(func(pb *testing.PB) {
				for i := seed.Add(1) << 32; pb.Next(); i++ {
					p.Pick(colours[i%benchColours])
				}
			})
		})
	}
}

func BenchmarkRebalance(b *testing.B) {
	p, _ := warmed(b, NameAdaptive, benchInstances, benchColours)
	for b.Loop() {
		p.(Rebalancer).Rebalance()
	}
}

// A decision is made for every invocation: it must not feed the garbage collector.
func TestPickDoesNotAllocate(t *testing.T) {
	for name := range measured {
		p, colours := warmed(t, name, 100, 10_000)
		i := uint64(0)
		if n := testing.AllocsPerRun(len(colours), func() { p.Pick(colours[i%uint64(len(colours))]); i++ }); n != 0 {
			t.Errorf("%s: %v allocations a pick", name, n)
		}
		if long := strings.Repeat("x", 2*maxName); testing.AllocsPerRun(100, func() { p.Pick(long); p.Pick("") }) != 0 {
			t.Errorf("%s: a pick of a long or empty colour allocates", name)
		}
	}
}
