package blocktest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/xylem-project/xylem/blockfmt"
)

// Memory is a blockfmt.Store in memory, without bounds. The zero value is empty and ready.
type Memory struct {
	mu     sync.Mutex
	blocks map[blockfmt.BlockID][]byte
}

func (m *Memory) Block(ctx context.Context, ref blockfmt.Ref) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	stored, ok := m.blocks[ref.ID]
	m.mu.Unlock()
	if !ok || int64(len(stored)) != ref.Length {
		return nil, fmt.Errorf("%v in memory: %w", ref, blockfmt.ErrNotFound)
	}
	return stored, nil
}

func (m *Memory) Put(_ context.Context, ref blockfmt.Ref, stored []byte) error {
	if err := blockfmt.Verify(ref, stored); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocks == nil {
		m.blocks = map[blockfmt.BlockID][]byte{}
	}
	m.blocks[ref.ID] = slices.Clone(stored)
	return nil
}

func (m *Memory) Has(ref blockfmt.Ref) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blocks[ref.ID]
	return ok
}

// Len returns the number of blocks.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}
