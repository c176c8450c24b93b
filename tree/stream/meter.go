package stream

import (
	"sync"
	"time"
)

const (
	stretch     = 500 * time.Millisecond // is measured at a time
	gap         = time.Second            // without anything ends a stretch: there was nothing to measure
	busyMemory  = 5 * time.Second        // for which it counts that a child had to wait
	meterMemory = time.Minute            // for which it counts how much was carried at best
)

// meter knows the most bytes per second that something carried of late: it can carry as much, perhaps more.
type meter struct {
	mu    sync.Mutex
	total int64 // bytes ever
	last  time.Time
	since time.Time // when this stretch began
	began int64     // total at that time
	rate  int64
	at    time.Time // when rate was measured
}

// add notes n bytes, and returns how many there were ever, and whether much more is carried than was known.
func (m *meter) add(n int, now time.Time) (total int64, more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total += int64(n)
	if now.Sub(m.last) > gap { // what came now was on its way before
		m.since, m.began = now, m.total
	}
	m.last = now
	if now.Sub(m.since) < stretch {
		return m.total, false
	}
	rate := perSecond(m.total-m.began, now.Sub(m.since))
	old := m.known(now)
	if rate >= old {
		m.rate, m.at = rate, now
	}
	m.since, m.began = now, m.total
	return m.total, rate > 2*old
}

func (m *meter) known(now time.Time) int64 {
	if now.Sub(m.at) > meterMemory {
		return 0
	}
	return m.rate
}

// best returns the most bytes per second, 0 if nothing was measured of late.
func (m *meter) best() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known(time.Now())
}

// busy is what all edges of a node carry together over times in which one of them was never idle: its child had to wait. Of two
// stretches in a row the better one counts, because the machine may have had something else to do in the other.
type busy struct {
	rate  int64     // bytes per second, of the last two stretches
	at    time.Time // when it was measured
	last  time.Time
	since time.Time // when this stretch began
	began int64     // bytes that were carried until then
	prior int64     // rate of the stretch that ended then, 0 if there was none
}

// add notes that the edge had more to send up to now, and what all edges have carried. It returns whether that tells something new.
func (b *busy) add(total int64, now time.Time) (news bool) {
	if now.Sub(b.last) > gap {
		b.since, b.began, b.prior = now, total, 0
	}
	b.last = now
	took := now.Sub(b.since)
	if took < stretch {
		return false
	}
	rate := perSecond(total-b.began, took)
	if b.prior > 0 {
		old := b.of(now)
		b.rate, b.at = max(rate, b.prior), now
		news = b.rate > 2*old || 2*b.rate < old
	}
	b.since, b.began, b.prior = now, total, max(rate, 1)
	return news
}

// idle notes that the edge had nothing to send.
func (b *busy) idle() { b.last = time.Time{} }

// of returns the rate as it is known at a time, 0 if it is not.
func (b *busy) of(now time.Time) int64 {
	if now.Sub(b.at) > busyMemory {
		return 0
	}
	return b.rate
}

func perSecond(n int64, d time.Duration) int64 { return int64(float64(n) / d.Seconds()) }
