package fetch

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

// RetryConfig says how Retry goes about it. The zero value is good.
type RetryConfig struct {
	Attempts int           // in total. Default 4.
	Timeout  time.Duration // of one attempt, which then counts as transient. Default 10 s.
	First    time.Duration // pause after the first failure, doubled after each more, half of it random. Default 50 ms.
	Longest  time.Duration // pause. Default 2 s.
}

func (c RetryConfig) withDefaults() RetryConfig {
	setDefault(&c.Attempts, 4)
	setDefault(&c.Timeout, 10*time.Second)
	setDefault(&c.First, 50*time.Millisecond)
	setDefault(&c.Longest, 2*time.Second)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Retry returns a Source that asks next again after an ErrTransient. Other errors end the read at once.
func Retry(next blockfmt.Source, cfg RetryConfig) blockfmt.Source {
	return retry{next, cfg.withDefaults()}
}

type retry struct {
	next blockfmt.Source
	cfg  RetryConfig
}

func (r retry) Verified() bool { return blockfmt.IsVerified(r.next) }

func (r retry) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	pause := r.cfg.First
	for attempt := 1; ; attempt++ {
		stored, err := within(ctx, r.next, ref, r.cfg.Timeout)
		if err == nil || attempt == r.cfg.Attempts || !errors.Is(err, blockfmt.ErrTransient) {
			return stored, err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
		pause = min(2*pause, r.cfg.Longest)
	}
}
