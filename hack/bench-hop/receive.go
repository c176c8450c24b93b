package main

import (
	"context"
	"crypto/tls"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/tree/stream"
)

// receive is the process that receives, in the ways whose names come.
func receive(ctx context.Context, _ options) error {
	enc, dec := gob.NewEncoder(os.Stdout), gob.NewDecoder(os.Stdin)
	var s setup
	if err := dec.Decode(&s); err != nil {
		return err
	}
	im, err := s.Blob.image()
	if err != nil {
		return err
	}
	stop, err := profile(s.Profiles, "receive")
	if err != nil {
		return err
	}
	defer stop()
	for {
		var way string
		if err := dec.Decode(&way); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		m, err := measure(ctx, way, s, im)
		if err != nil {
			m.Error = err.Error()
		}
		if err := enc.Encode(m); err != nil {
			return err
		}
	}
}

// measure receives all blocks in one way.
func measure(ctx context.Context, way string, s setup, im *stream.Image) (m measured, err error) {
	before := processorTime()
	switch way {
	case "tls":
		m.Took, err = receiveTLS(s)
	case "hop":
		m.Took, err = hop(ctx, s, im, stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(0)}, pushed)
	case "hop_asked":
		m.Took, err = hop(ctx, s, im, stream.Attachment{Epoch: 1}, asked)
	default:
		err = fmt.Errorf("unknown way %q", way)
	}
	m.CPU = processorTime() - before
	return m, err
}

func receiveTLS(s setup) (time.Duration, error) {
	start := time.Now()
	c, err := tls.Dial("tcp", s.TLS, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	left := int64(0)
	for _, n := range s.Blob.Lengths {
		left += n
	}
	for left > 0 {
		n, err := c.Read(buf)
		if left -= int64(n); err != nil && left > 0 {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// hop makes an agent a child of the process that serves, and waits until all blocks have come.
func hop(ctx context.Context, s setup, im *stream.Image, at stream.Attachment, all func(*stream.Peer, *stream.Image, *sink) error) (took time.Duration, err error) {
	child, err := startAgent(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, child.close()) }()
	store := &sink{blocks: int64(im.Len()), all: make(chan struct{})}
	share, err := child.node.Share(stream.ShareConfig{Image: im, Store: store, Source: store, Recycle: true})
	if err != nil {
		return 0, err
	}
	defer share.Close()
	start := time.Now()
	p, err := child.host.Attach(ctx, share, s.Parent, at)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	err = all(p, im, store)
	return time.Since(start), err
}

// pushed waits for what comes unasked.
func pushed(p *stream.Peer, _ *stream.Image, store *sink) error {
	select {
	case <-store.all:
		return nil
	case <-p.Done():
		return p.Err()
	}
}

// readers is how many blocks are asked for at a time.
const readers = 32

// asked asks for all blocks.
func asked(p *stream.Peer, im *stream.Image, _ *sink) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, readers)
	for r := range readers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < im.Len() && errs[r] == nil; i = int(next.Add(1)) - 1 {
				_, errs[r] = p.Block(context.Background(), im.Ref(i))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// sink is a Store that keeps nothing, so that the hop is measured and not a disk.
type sink struct {
	blocks int64 // to come
	came   atomic.Int64
	all    chan struct{} // closed when they have
}

func (s *sink) Block(context.Context, blockfmt.Ref) ([]byte, error) { return nil, blockfmt.ErrNotFound }
func (s *sink) Has(blockfmt.Ref) bool                               { return false }
func (s *sink) Put(context.Context, blockfmt.Ref, []byte) error     { return blockfmt.ErrUnsupported }

// Keep takes a block that was verified.
func (s *sink) Keep(context.Context, blockfmt.Ref, []byte) error {
	if s.came.Add(1) == s.blocks {
		close(s.all)
	}
	return nil
}
