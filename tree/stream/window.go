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
	probes []probe       // messages whose acknowledgement was asked for
	acked  uint64

	uplink *meter // of all edges of the node
	busy   busy
	news   func() // is told when the uplink is known better
}

type probe struct {
	sent, acked uint64 // when it was sent
	at          time.Time
	limited     bool // the window was full: what is measured is the edge, not the lack of things to send
	busy        bool // there was more to send
}

func newWindow(delay time.Duration, min, max int) *window {
	return &window{delay: delay, min: min, max: max, size: min, uplink: new(meter), news: func() {}}
}

// room says how many bytes may follow when so many were sent.
func (w *window) room(sent uint64) int { return w.size - int(sent-w.acked) }

// probe notes that an acknowledgement of the first sent bytes is asked for.
// busy says that there is more to send.
func (w *window) probe(sent uint64, now time.Time, busy bool) {
	limited := w.room(sent) <= w.size/2
	w.probes = append(w.probes, probe{sent, w.acked, now, limited, busy})
}

// ack notes that the first received of sent bytes arrived; false if that cannot be.
func (w *window) ack(received, sent uint64, now time.Time) bool {
	if received < w.acked || received > sent {
		return false
	}
	total, news := w.uplink.add(int(received-w.acked), now)
	w.acked = received
	for len(w.probes) > 0 && w.probes[0].sent <= received {
		if w.probes[0].busy {
			news = w.busy.add(total, now) || news
		} else {
			w.busy.idle()
		}
		w.measure(w.probes[0], now)
		w.probes = w.probes[1:]
	}
	if news {
		w.news()
	}
	return true
}

func (w *window) measure(p probe, now time.Time) {
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
