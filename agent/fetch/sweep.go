package fetch

import (
	"context"
	"fmt"
	"io"

	"github.com/xylem-project/xylem/blockfmt"
)

// SweepConfig of a Sweep. Reader and Store are needed.
type SweepConfig struct {
	Reader RangeReader
	Store  blockfmt.Store // keeps the blocks
	Gate   *Gate          // demand reads through it go first. Default: there are none.
	Bytes  int64          // of one request at most. Default 32 MiB.
}

// A Sweep fetches blocks that nobody has asked for yet and that somebody may ask for soon, in few large requests, and keeps them as
// they are stored: what a registry and a node spend on a block is then a fraction of what they spend on a demand read.
type Sweep struct {
	cfg  SweepConfig
	runs [][]blockfmt.Ref // neighbours
}

// NewSweep returns a Sweep of nothing.
func NewSweep(cfg SweepConfig) *Sweep {
	setDefault(&cfg.Bytes, 32<<20)
	if cfg.Gate == nil {
		cfg.Gate = Gated(nil)
	}
	return &Sweep{cfg: cfg}
}

// Add appends the first n blocks of a blob, as far as they have no more than limit stored bytes together, and returns how many
// bytes they have.
func (s *Sweep) Add(ix *blockfmt.Index, n int, limit int64) (added int64) {
	room := int64(0) // in the last run
	for i := range min(n, ix.Len()) {
		ref := ix.Ref(i)
		if added += ref.Length; added > limit {
			return added - ref.Length
		}
		if room -= ref.Length; room < 0 {
			s.runs, room = append(s.runs, nil), s.cfg.Bytes-ref.Length
		}
		last := len(s.runs) - 1
		s.runs[last] = append(s.runs[last], ref)
	}
	return added
}

// Run fetches what the store does not have. It ends with the first error: what is missing then is fetched on demand.
func (s *Sweep) Run(ctx context.Context) (err error) {
	buf := make([]byte, 0, blockfmt.BlockSize)
	for _, run := range s.runs {
		for run = s.missing(run); len(run) > 0; run = s.missing(run) {
			if run, err = s.fetch(ctx, run, &buf); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing cuts off what is here or fetched by others at both ends of a run.
func (s *Sweep) missing(run []blockfmt.Ref) []blockfmt.Ref {
	for len(run) > 0 && s.has(run[0]) {
		run = run[1:]
	}
	for len(run) > 0 && s.has(run[len(run)-1]) {
		run = run[:len(run)-1]
	}
	return run
}

func (s *Sweep) has(ref blockfmt.Ref) bool { return s.cfg.Store.Has(ref) || s.cfg.Gate.fetches(ref) }

// fetch reads a run in one request, block by block, until demand reads have brought so much of what comes next that another request
// is better. It returns the rest.
func (s *Sweep) fetch(ctx context.Context, run []blockfmt.Ref, buf *[]byte) ([]blockfmt.Ref, error) {
	d := s.cfg.Gate.expect(run)
	defer d.close()
	last := run[len(run)-1]
	body, err := s.cfg.Reader.Range(ctx, run[0].Blob, run[0].Offset, last.Offset+last.Length-run[0].Offset)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	for i, ref := range run {
		if err := d.turn(ctx); err != nil {
			return nil, err
		}
		if s.hasNext(run[i:]) {
			return run[i:], nil
		}
		stored, err := s.read(body, ref, buf)
		if err == nil {
			err = s.keep(ctx, ref, stored)
		}
		if err != nil {
			return nil, err
		}
		d.brought(stored)
	}
	return nil, nil
}

// skip is how many bytes are cheaper asked for anew behind them than read over.
const skip = 2 << 20

// hasNext says whether all of the next bytes of a run are here or fetched by others, so many that a new request is cheaper than
// reading over them.
func (s *Sweep) hasNext(run []blockfmt.Ref) bool {
	n := int64(0)
	for _, ref := range run {
		if !s.has(ref) {
			return false
		}
		if n += ref.Length; n >= skip {
			return true
		}
	}
	return false
}

// read returns the next block of a request's body, in buf.
func (s *Sweep) read(body io.Reader, ref blockfmt.Ref, buf *[]byte) ([]byte, error) {
	if ref.Length > blockfmt.MaxBlockSize {
		return nil, fmt.Errorf("%v: %d stored bytes: %w", ref, ref.Length, blockfmt.ErrCorrupt)
	}
	if int64(cap(*buf)) < ref.Length {
		*buf = make([]byte, ref.Length)
	}
	stored := (*buf)[:ref.Length]
	if n, err := io.ReadFull(body, stored); err != nil {
		return nil, bodyError(ref, n, err)
	}
	return stored, nil
}

// keep verifies a block and keeps it if it is new.
func (s *Sweep) keep(ctx context.Context, ref blockfmt.Ref, stored []byte) error {
	if s.cfg.Store.Has(ref) {
		return blockfmt.Verify(ref, stored)
	}
	return s.cfg.Store.Put(ctx, ref, stored)
}
