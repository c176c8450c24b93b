package stream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestPacerRate: whoever takes, in whatever pieces, the sum keeps to the rate.
func TestPacerRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1_000_000)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for range 10 {
					if err := p.take(t.Context(), Lane(i%lanes), 1000+100*(i%3)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if d, want := time.Since(start), 550*time.Millisecond; d < want-5*time.Millisecond || d > want+5*time.Millisecond {
			t.Errorf("took %v, want about %v", d, want)
		}
	})
}

// TestPacerLanes: demand overtakes what waits, and who goes away takes nothing.
func TestPacerLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(1000)
		order := make(chan Lane, 10)
		var wg sync.WaitGroup
		take := func(ctx context.Context, lane Lane) {
			wg.Go(func() {
				if p.take(ctx, lane, 1000) == nil {
					order <- lane // one at a time, a second apart
				}
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		take(t.Context(), LanePush) // passes at once
		take(t.Context(), LanePush)
		take(ctx, LaneDemand)
		take(t.Context(), LaneBackground)
		take(t.Context(), LaneDemand)
		start := time.Now()
		cancel()
		wg.Wait()
		close(order)
		for _, want := range []Lane{LanePush, LaneDemand, LaneBackground, LanePush} {
			if got := <-order; got != want {
				t.Errorf("lane %v, want %v", got, want)
			}
		}
		if d := time.Since(start); d < 2900*time.Millisecond || d > 3*time.Second {
			t.Errorf("took %v, want three seconds", d)
		}
	})
}

func TestPacerWithdraw(t *testing.T) {
	p := newPacer(1)
	first, second := p.queue(LanePush, 1), p.queue(LanePush, 1)
	if !p.withdraw(first) || p.withdraw(second) {
		t.Error("the first turn was granted, and the second was not")
	}
	var none *pacer
	if !none.withdraw(none.queue(LanePush, 1<<30)) {
		t.Error("no pacer keeps nobody waiting")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if err := p.take(ctx, LanePush, 1); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	p.timer.Stop()
}

// carry runs a window over a link of a rate and a delay until its size is steady.
func carry(w *window, rate float64, delay time.Duration, sent *uint64, now *time.Time) {
	link := *now // when the link is free
	type arrival struct {
		sent uint64
		at   time.Time
	}
	var way []arrival
	for range 5000 {
		for w.room(*sent) > 0 {
			const unit = 16 << 10
			*sent += unit
			w.probe(*sent, *now, true)
			link = latest(link, *now).Add(time.Duration(unit / rate * float64(time.Second)))
			way = append(way, arrival{*sent, link.Add(delay)})
		}
		*now = way[0].at
		w.ack(way[0].sent, *sent, *now)
		way = way[1:]
	}
	for _, a := range way {
		*now = a.at
		w.ack(a.sent, *sent, *now)
	}
}

// TestWindow: on any link the window fills it, and no more than the delay on top of it.
func TestWindow(t *testing.T) {
	for name, link := range map[string]struct {
		rate  float64
		delay time.Duration
	}{
		"100 Mbit/s":        {12.5e6, 100 * time.Microsecond},
		"1 Gbit/s":          {125e6, 100 * time.Microsecond},
		"50 Mbit/s, 20 ms":  {6.25e6, 20 * time.Millisecond},
		"200 Mbit/s, 40 ms": {25e6, 40 * time.Millisecond},
	} {
		w := newWindow(25*time.Millisecond, 64<<10, 16<<20)
		sent, now := uint64(0), time.Unix(0, 0)
		carry(w, link.rate, link.delay, &sent, &now)
		fill := link.rate * link.delay.Seconds()
		low, high := int(fill+0.5*0.025*link.rate), int(fill+2*0.025*link.rate)
		if w.size < low || w.size > high {
			t.Errorf("%s: window of %d bytes, want %d to %d", name, w.size, low, high)
		}
		carry(w, link.rate/10, link.delay, &sent, &now)
		if fill /= 10; w.size > int(fill+2*0.0025*link.rate)+64<<10 {
			t.Errorf("%s: window of %d bytes on a link that became slower by ten", name, w.size)
		}
	}
}

func TestWindowBounds(t *testing.T) {
	w := newWindow(25*time.Millisecond, 64<<10, 1<<20)
	now := time.Unix(0, 0)
	w.probe(1000, now, true)
	if w.ack(1001, 1000, now) {
		t.Error("took an acknowledgement of what was not sent")
	}
	if !w.ack(1000, 1000, now) || w.size != 1<<20 { // in no time
		t.Errorf("window of %d bytes", w.size)
	}
	if w.ack(999, 1000, now) {
		t.Error("took an acknowledgement back")
	}
	w.probe(2000, now, true)
	w.ack(2000, 2000, now.Add(time.Hour))
	if w.size != 64<<10 {
		t.Errorf("window of %d bytes after an hour for 1000", w.size)
	}
}

func TestInOrder(t *testing.T) {
	f := InOrder(6, []int{4, 2, 4, 99, -1})
	here := map[int]bool{0: true, 1: true, 2: true, 3: true, 4: true, 5: true}
	next := func() int {
		i, ok := f.Next(func(i int) bool { return here[i] })
		if !ok {
			return -1
		}
		delete(here, i)
		return i
	}
	var got []int
	got = append(got, next())
	f.Missed(5)
	f.Missed(5)
	f.Missed(77) // never here
	got = append(got, next(), next(), next())
	here[4] = true // evicted there
	got = append(got, next(), next(), next())
	if want := []int{4, 5, 2, 0, 4, 1, 3}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	for i := range 1000 {
		f.Missed(i)
	}
	if n := len(f.(*inOrder).misses); n != maxMisses {
		t.Errorf("%d misses are remembered", n)
	}
}

func TestHot(t *testing.T) {
	h := newHot(10)
	h.add(1, newBlock(make([]byte, 4)))
	h.add(1, newBlock(make([]byte, 4)))
	h.add(2, newBlock(make([]byte, 5)))
	h.add(3, newBlock(make([]byte, 11))) // more than there is room for at all
	if h.blocks[1] == nil || h.blocks[2] == nil || h.blocks[3] != nil || h.bytes != 9 {
		t.Errorf("%d bytes in %d blocks", h.bytes, len(h.blocks))
	}
	h.add(4, newBlock(make([]byte, 4)))
	if h.blocks[1] != nil || h.blocks[2] == nil || h.blocks[4] == nil || h.bytes != 9 {
		t.Errorf("%d bytes in %d blocks after one more", h.bytes, len(h.blocks))
	}
}

func TestBitset(t *testing.T) {
	b := newBitset(1000)
	want := []int{0, 7, 8, 63, 64, 500, 999}
	for _, i := range want {
		b.add(i)
	}
	b.add(501)
	b.remove(501)
	var got []int
	for first := 0; first < 1000; first += 8 * 16 {
		each(b.slice(first, 16), first, func(i int) { got = append(got, i) })
	}
	if !slices.Equal(got, want) || b.count() != len(want) || b.has(501) || !b.has(500) {
		t.Errorf("%v, %d, want %v", got, b.count(), want)
	}
	if len(b.slice(512, 16)) != 0 {
		t.Error("an empty part has a bitmap")
	}
}

func TestBlockIsRecycledOnce(t *testing.T) {
	var pool buffers
	for _, n := range []int{1, 64 << 10, 64<<10 + 1, 1 << 20, 1<<20 + 1} {
		if b := pool.get(n); len(b) != 0 || cap(b) < n {
			t.Errorf("buffer for %d bytes has room for %d", n, cap(b))
		}
	}
	b := newBlock(nil)
	b.buf, b.pool = pool.get(100), &pool
	held := b.hold()
	b.release()
	class := &pool[0]
	if class.Get() != nil {
		t.Error("a buffer that is held was put back")
	}
	held.release()
	_ = class.Get() // may be nil: under the race detector pools forget at random
	if class.Get() != nil {
		t.Error("a buffer was put back twice")
	}
	pool.put(make([]byte, 100)) // of no pool
	if class.Get() != nil {
		t.Error("a foreign buffer was put into the pool")
	}
}
