package treesim

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// content is an image whose blocks are empty but for a tag at both ends, so that wrong bytes show without hashing. All agents
// share the memory of a block, and the pages between tags are never touched.
type content struct {
	image *stream.Image
	index *blockfmt.Index
	bytes []byte
}

const tagSize = 8

func newContent(blocks int, size int64, stripes int) (*content, error) {
	if blocks < 1 || size < 2*tagSize || size > blockfmt.MaxBlockSize {
		return nil, fmt.Errorf("treesim: %d blocks of %d bytes", blocks, size)
	}
	var builder blockfmt.IndexBuilder
	c := &content{bytes: make([]byte, int64(blocks)*size)}
	for i := range blocks {
		tag := binary.BigEndian.AppendUint64(nil, uint64(i)+1)
		copy(c.bytes[int64(i)*size:], tag)
		copy(c.bytes[int64(i+1)*size-tagSize:], tag)
		builder.Append(sha256.Sum256(tag), size, size)
	}
	name := digest.FromString(fmt.Sprintf("%d blocks of %d bytes", blocks, size))
	index, err := builder.Index(name)
	if err != nil {
		return nil, err
	}
	c.index = index
	c.image, err = stream.NewImage(name, stripes, index)
	return c, err
}

// of returns the bytes of a block.
func (c *content) of(ref blockfmt.Ref) []byte {
	return c.bytes[ref.Offset : ref.Offset+ref.Length : ref.Offset+ref.Length]
}

// verify stands for blockfmt.Verify.
func (c *content) verify(ref blockfmt.Ref, stored []byte) error {
	if int64(len(stored)) != ref.Length {
		return fmt.Errorf("%v: %d bytes: %w", ref, len(stored), blockfmt.ErrCorrupt)
	}
	want := uint64(ref.Number) + 1
	if binary.BigEndian.Uint64(stored) != want || binary.BigEndian.Uint64(stored[len(stored)-tagSize:]) != want {
		return fmt.Errorf("%v: wrong tag: %w", ref, blockfmt.ErrCorrupt)
	}
	return nil
}

// store keeps an agent's blocks in memory. It remembers what it was given, right or wrong.
type store struct {
	content *content
	added   func(held int) // told of every new block

	mu   sync.Mutex
	held map[int][]byte
}

func newStore(c *content, added func(held int)) *store {
	return &store{content: c, added: added, held: map[int][]byte{}}
}

func (s *store) Verified() bool { return true }

func (s *store) Block(_ context.Context, ref blockfmt.Ref) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stored := s.held[ref.Number]; stored != nil {
		return stored, nil
	}
	return nil, fmt.Errorf("%v: %w", ref, blockfmt.ErrNotFound)
}

func (s *store) Has(ref blockfmt.Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[ref.Number] != nil
}

func (s *store) Put(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if err := s.content.verify(ref, stored); err != nil {
		return err
	}
	return s.Keep(ctx, ref, stored)
}

// Keep is Put for bytes that were verified.
func (s *store) Keep(_ context.Context, ref blockfmt.Ref, stored []byte) error {
	s.mu.Lock()
	was := len(s.held)
	if s.held[ref.Number] == nil {
		s.held[ref.Number] = stored
	}
	held := len(s.held)
	s.mu.Unlock()
	if held > was {
		s.added(held)
	}
	return nil
}

func (s *store) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// wrong returns how many blocks are not what they should be.
func (s *store) wrong() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, stored := range s.held {
		if s.content.verify(s.content.image.Ref(i), stored) != nil {
			n++
		}
	}
	return n
}
