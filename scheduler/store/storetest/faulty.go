package storetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/store"
)

// Faulty is the way to a store that can be cut.
type Faulty struct {
	store store.Store

	mu  sync.Mutex
	cut chan struct{} // closed while it is cut
}

// NewFaulty returns a way to s that is not cut.
func NewFaulty(s store.Store) *Faulty {
	f := &Faulty{store: s, cut: make(chan struct{})}
	return f
}

// Cut makes calls fail. Keys that are held vanish when their time is over, as the store sees it.
func (f *Faulty) Cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cut)
}

// Mend undoes Cut.
func (f *Faulty) Mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = make(chan struct{})
}

func (f *Faulty) signal() (cut <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

func (f *Faulty) err() error {
	select {
	case <-f.signal():
		return fmt.Errorf("cut: %w", store.ErrUnavailable)
	default:
		return nil
	}
}

// Read implements store.Store.
func (f *Faulty) Read(ctx context.Context, prefix string) ([]store.Item, error) {
	if err := f.err(); err != nil {
		return nil, err
	}
	return f.store.Read(ctx, prefix)
}

// Write implements store.Store.
func (f *Faulty) Write(ctx context.Context, tx store.Tx) (int64, error) {
	if err := f.err(); err != nil {
		return 0, err
	}
	return f.store.Write(ctx, tx)
}

// Watch implements store.Store.
func (f *Faulty) Watch(ctx context.Context, prefix string, changed func([]store.Item)) error {
	if err := f.err(); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	cut := f.signal()
	go func() {
		select {
		case <-cut:
			stop()
		case <-watching.Done():
		}
	}()
	err := f.store.Watch(watching, prefix, changed)
	if ctx.Err() == nil {
		return fmt.Errorf("cut: %w", store.ErrUnavailable)
	}
	return err
}

// Hold implements store.Store.
func (f *Faulty) Hold(ctx context.Context, item store.Item, ttl time.Duration, held func()) error {
	if err := f.err(); err != nil {
		return err
	}
	holding, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() { done <- f.store.Hold(holding, item, ttl, held) }()
	select {
	case <-ctx.Done():
		stop()
		return <-done
	case err := <-done:
		return err
	case <-f.signal():
	}
	select {
	case <-time.After(ttl):
	case <-ctx.Done():
	}
	stop()
	<-done
	return fmt.Errorf("cut: %w", store.ErrUnavailable)
}
