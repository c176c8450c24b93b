package registryproxy

import (
	"context"
	"fmt"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// background owns what goes on after the request that began it: its goroutines end with it.
type background struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newBackground() *background {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &background{ctx: ctx, cancel: cancel}
}

// run calls do in a goroutine.
func (b *background) run(do func(context.Context)) { b.wg.Go(func() { do(b.ctx) }) }

// close ends all that runs, and waits.
func (b *background) close() {
	b.cancel(fmt.Errorf("the proxy ends: %w", blockfmt.ErrTransient))
	b.wg.Wait()
}

// flights are questions to registries that are under way, by what they ask: who asks the same shares the answer. A question
// goes on when those who asked it leave, for the next one; the Upstream bounds its time. Safe for concurrent use.
type flights[T any] struct {
	mu      sync.Mutex
	current map[string]*flight[T]
}

type flight[T any] struct {
	done  chan struct{} // closed when the others are set
	value T
	err   error
}

// do returns what ask returns to all who ask for key at the same time.
func (f *flights[T]) do(ctx context.Context, b *background, key string, ask func(context.Context) (T, error)) (T, error) {
	f.mu.Lock()
	c := f.current[key]
	if c == nil {
		c = &flight[T]{done: make(chan struct{})}
		if f.current == nil {
			f.current = map[string]*flight[T]{}
		}
		f.current[key] = c
		b.run(func(ctx context.Context) {
			c.value, c.err = ask(ctx)
			f.mu.Lock()
			delete(f.current, key)
			f.mu.Unlock()
			close(c.done)
		})
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}
