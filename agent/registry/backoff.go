package registry

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = 5 * time.Second
)

// backoff says when the next request may be sent to one host. All requests to the host share it, so that a registry
// which asks for rest gets it from the whole node.
type backoff struct {
	max time.Duration // of a Retry-After

	mu       sync.Mutex
	failures int       // in a row
	until    time.Time // no request before
}

// wait returns how long to wait before a request at now.
func (b *backoff) wait(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, b.until.Sub(now))
}

// failed notes a failure at now; retryAfter is what the host asked for, 0 if nothing. It reports whether this is the
// first one in a row. Requests that were under way at the same time count as one.
func (b *backoff) failed(now time.Time, retryAfter time.Duration) (first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Before(b.until) && retryAfter == 0 {
		return false
	}
	first = b.failures == 0
	delay := min(firstDelay<<min(b.failures, 10), lastDelay)
	b.failures++
	delay = delay/2 + rand.N(delay/2)
	if retryAfter > 0 {
		delay = min(retryAfter, b.max)
	}
	if until := now.Add(delay); until.After(b.until) {
		b.until = until
	}
	return first
}

// succeeded notes an answer. It leaves a time that the host asked for as it is.
func (b *backoff) succeeded() {
	b.mu.Lock()
	b.failures = 0
	b.mu.Unlock()
}

// retryAfter reads the header of an answer, in seconds or as a date; 0 if there is none or it makes no sense.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if value == "" {
		return 0
	}
	if s, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
