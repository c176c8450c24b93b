package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Rate is in bits per second, as network cards are sold. 0 is unlimited.
type Rate int64

// Units of a Rate, decimal.
const (
	Kbit Rate = 1000
	Mbit      = 1000 * Kbit
	Gbit      = 1000 * Mbit
)

// The rates that the kernel's token bucket keeps well.
const minRate, maxRate = 64 * Kbit, 10 * Gbit

// Bytes per second.
func (r Rate) Bytes() float64 { return float64(r) / 8 }

// UnmarshalText parses a whole number with a unit, as "100mbit", or "none".
func (r *Rate) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*r = 0
		return nil
	}
	for suffix, unit := range map[string]Rate{"kbit": Kbit, "mbit": Mbit, "gbit": Gbit} {
		number, ok := strings.CutSuffix(string(text), suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil {
			break
		}
		*r = Rate(n) * unit
		if *r < minRate || *r > maxRate {
			return fmt.Errorf("rate %q is not between %v and %v", text, minRate, maxRate)
		}
		return nil
	}
	return fmt.Errorf("rate %q is not a whole number of kbit, mbit or gbit a second, nor none", text)
}

// MarshalText writes the largest unit that loses nothing.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r Rate) String() string {
	switch {
	case r == 0:
		return "none"
	case r%Gbit == 0:
		return fmt.Sprintf("%dgbit", r/Gbit)
	case r%Mbit == 0:
		return fmt.Sprintf("%dmbit", r/Mbit)
	}
	return fmt.Sprintf("%dkbit", r/Kbit)
}

// Link is how a host is connected to the switch.
type Link struct {
	// Up and Down are the rates from and to the host. Default 0: unlimited.
	Up, Down Rate
	// Queue is how long a packet waits at most for its turn on the link; then packets are dropped. Default 100 ms.
	Queue time.Duration
	// Congestion is the host's TCP congestion control, as "cubic" or "bbr". Default: this machine's.
	Congestion string
}

func (l Link) validate() error {
	for _, r := range []Rate{l.Up, l.Down} {
		if r != 0 && (r < minRate || r > maxRate) {
			return fmt.Errorf("rate of %d bit/s is not between %v and %v", r, minRate, maxRate)
		}
	}
	if l.Queue < 0 || l.Queue > 10*time.Second {
		return fmt.Errorf("queue of %v is not between 0 and 10 s", l.Queue)
	}
	if strings.ContainsAny(l.Congestion, "/ \n") {
		return errors.New("congestion control is not the name of one")
	}
	return nil
}

// shape returns the command of tc that gives a device this rate. Its bucket lets the largest packets that TCP makes, 64 KiB, pass in one
// piece, at 100 Mbit/s in 5 ms: what does not fit is cut into frames, and with those eight hosts kept two processors busy
// without anybody computing anything.
func shape(device string, rate Rate, queue time.Duration) string {
	const minBurst, minLimit = 70 << 10, 140 << 10
	if rate == 0 {
		return fmt.Sprintf("qdisc replace dev %s root pfifo_fast\n", device)
	}
	if queue == 0 {
		queue = 100 * time.Millisecond
	}
	burst := max(minBurst, int64(rate.Bytes()*0.002))
	limit := max(minLimit, int64(rate.Bytes()*queue.Seconds()))
	return fmt.Sprintf("qdisc replace dev %s root tbf rate %dbit burst %d limit %d\n", device, rate, burst, limit)
}
