package placement

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

// Many pick while instances come and go: none gets an instance that was gone before it asked, and load that is given back leaves none behind.
func TestPickWhileInstancesComeAndGo(t *testing.T) {
	const always, changing, rounds = 3, 4, 24
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Colours: 500}
			if name == NameAdaptive {
				cfg.LoadBound, cfg.Warm = 1.25, 20
			}
			p := build(t, name, cfg, always)
			var gone [always + changing]atomic.Bool // nobody may be sent there
			var stop atomic.Bool
			var pickers sync.WaitGroup
			for w := range 4 {
				pickers.Go(func() {
					for i := 0; !stop.Load(); i++ {
						pickWhile(t, p, &gone, fmt.Sprint("colour-", (i*i+w)%700))
					}
				})
			}
			for i := range rounds {
				id := Instance(always + i%changing)
				gone[id].Store(false)
				p.Add(id)
				if r, ok := p.(Rebalancer); ok && i%3 == 0 {
					r.Rebalance()
				}
				if i%2 == 0 {
					p.Remove(id)
					gone[id].Store(true)
				}
			}
			stop.Store(true)
			pickers.Wait()
		})
	}
}

func pickWhile(t *testing.T, p Policy, gone *[7]atomic.Bool, colour string) {
	var before [7]bool
	for i := range gone {
		before[i] = gone[i].Load()
	}
	id, ok := p.Pick(colour)
	if !ok || before[id] && gone[id].Load() {
		t.Errorf("%s: picked %d, %v", colour, id, ok)
	}
	if l, ok := p.(LoadAware); ok {
		l.Assigned(id)
		l.Done(id)
	}
}
