package stream

import "time"

// window bounds the bytes that are on their way to a child, by what the edge carries in a round trip and delay: so the push
// fills any link, and queues on the way stay short enough for demand to get through.
type window struct {
	delay    time.Duration // of queue on the way that the push may cause
	min, max int

	size   int           // bytes
	rate   float64       // bytes per second that arrive
	rtt    time.Duration // the shortest; 0: not known
	steady steady
	probes []probe // messages whose acknowledgement was asked for
	acked  uint64
}

type probe struct {
	sent, acked uint64 // when it was sent
	at          time.Time
	limited     bool // the window was full: what is measured is the edge, not the lack of things to send
	busy        bool // there was more to send
}

func newWindow(delay time.Duration, min, max int) *window {
	return &window{delay: delay, min: min, max: max, size: min}
}

// room says how many bytes may follow when so many were sent.
func (w *window) room(sent uint64) int { return w.size - int(sent-w.acked) }

// probe notes that an acknowledgement of the first sent bytes is asked for.
// busy says that there is more to send.
func (w *window) probe(sent uint64, now time.Time, busy bool) {
	limited := w.room(sent) <= w.size/2
	w.probes = append(w.probes, probe{sent, w.acked, now, limited, busy || limited})
}

// ack notes that the first received of sent bytes arrived; false if that cannot be.
func (w *window) ack(received, sent uint64, now time.Time) bool {
	if received < w.acked || received > sent {
		return false
	}
	w.acked = received
	for len(w.probes) > 0 && w.probes[0].sent <= received {
		w.measure(w.probes[0], now)
		w.probes = w.probes[1:]
	}
	return true
}

func (w *window) measure(p probe, now time.Time) {
	if p.busy {
		w.steady.add(w.acked, now)
	}
	rtt := now.Sub(p.at)
	if rtt <= 0 { // virtual time, or a clock that is too coarse
		w.size = w.max
		return
	}
	if w.rtt == 0 || rtt < w.rtt {
		w.rtt = rtt // never forgotten: what is measured later has the push's own queue in it
	}
	rate := float64(w.acked-p.acked) / rtt.Seconds()
	switch {
	case rate > w.rate:
		w.rate = rate
	case p.limited:
		w.rate += (rate - w.rate) / 8
	}
	w.size = min(max(int(w.rate*(w.rtt+w.delay).Seconds()), w.min), w.max)
}

// steady is the rate of an edge over times in which it was never idle: rate itself is for the window, and too high rather than low.
type steady struct {
	rate  float64   // bytes per second, of the last stretch
	last  time.Time // when it was seen busy last
	since time.Time // when this stretch began
	acked uint64    // when it began
}

const (
	steadyStretch = 500 * time.Millisecond // is measured at a time
	steadyMemory  = 5 * time.Second        // for which a rate says something
)

// add notes that the edge was busy up to now.
func (s *steady) add(acked uint64, now time.Time) {
	if now.Sub(s.last) > steadyStretch { // it may have been idle in between
		s.since, s.acked = now, acked
	}
	s.last = now
	if took := now.Sub(s.since); took >= steadyStretch {
		s.rate = float64(acked-s.acked) / took.Seconds()
		s.since, s.acked = now, acked
	}
}

// of returns the rate as it is known at a time, 0 if it is not.
func (s *steady) of(now time.Time) float64 {
	if now.Sub(s.last) > steadyMemory {
		return 0
	}
	return s.rate
}
