package store

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a Store for a cluster that need not outlive its process, such as one that runs all on one machine for a try.
type Memory struct {
	mu       sync.Mutex
	items    map[string]Item
	revision int64
	changed  chan struct{} // closed and replaced with every change
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{items: map[string]Item{}, changed: make(chan struct{})} }

// Read implements Store.
func (m *Memory) Read(ctx context.Context, prefix string) ([]Item, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	items, _ := m.read(prefix)
	return items, nil
}

func (m *Memory) read(prefix string) ([]Item, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Item
	for _, key := range slices.Sorted(maps.Keys(m.items)) {
		if strings.HasPrefix(key, prefix) {
			item := m.items[key]
			item.Value = bytes.Clone(item.Value)
			found = append(found, item)
		}
	}
	return found, m.changed
}

// Write implements Store.
func (m *Memory) Write(ctx context.Context, tx Tx) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := tx.Validate(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range tx.If {
		item, exists := m.items[c.Key]
		if c.Revision == Exists && !exists || c.Revision != Exists && item.Revision != c.Revision {
			return 0, ErrConflict
		}
	}
	m.revision++
	for _, item := range tx.Put {
		m.items[item.Key] = Item{Key: item.Key, Value: bytes.Clone(item.Value), Revision: m.revision}
	}
	for _, key := range tx.Delete {
		delete(m.items, key)
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return m.revision, nil
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, prefix string, changed func([]Item)) error {
	var last []Item
	for first := true; ; first = false {
		items, more := m.read(prefix)
		if first || !slices.EqualFunc(items, last, func(a, b Item) bool { return a.Key == b.Key && a.Revision == b.Revision }) {
			last = slices.Clone(items)
			changed(items)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}

// Hold implements Store. Nothing lies between the holder and the store, so the key is always renewed in time.
func (m *Memory) Hold(ctx context.Context, item Item, _ time.Duration, held func()) error {
	written, err := m.Write(ctx, Tx{Put: []Item{item}})
	if err != nil {
		return err
	}
	held()
	<-ctx.Done()
	mine := Tx{If: []Condition{{item.Key, written}}, Delete: []string{item.Key}}
	m.Write(context.WithoutCancel(ctx), mine) //nolint:errcheck // a conflict says that somebody else holds the key now
	return nil
}
