package stream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// hopBlob returns a blob of blocks of 512 KiB that are stored in about 180 KiB, as those of real images are.
func hopBlob(tb testing.TB, blocks int) *blocktest.Blob {
	tb.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		tb.Fatal(err)
	}
	// Not on the heap: an agent's blocks lie in files, and its garbage collector works on a heap without them.
	memory, err := syscall.Mmap(-1, 0, blocks*(190<<10), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = syscall.Munmap(memory) })
	blob := &blocktest.Blob{Stored: memory[:0]}
	var builder blockfmt.IndexBuilder
	raw := make([]byte, blockfmt.BlockSize)
	for range blocks {
		_, _ = rand.Read(raw[:180<<10])
		before := len(blob.Stored)
		blob.Stored = enc.EncodeAll(raw, blob.Stored)
		builder.Append(blockfmt.IDOf(blob.Stored[before:]), int64(len(blob.Stored)-before), int64(len(raw)))
	}
	if blob.Index, err = builder.Index(digest.FromBytes(blob.Stored)); err != nil {
		tb.Fatal(err)
	}
	return blob
}

// sink is a Store that keeps nothing, so that the hop is measured and not a disk.
type sink struct {
	bytes atomic.Int64
	came  chan struct{}
}

func (s *sink) Block(context.Context, blockfmt.Ref) ([]byte, error) { return nil, blockfmt.ErrNotFound }
func (s *sink) Has(blockfmt.Ref) bool                               { return false }
func (s *sink) Put(context.Context, blockfmt.Ref, []byte) error     { panic("bytes are verified already") }
func (s *sink) Keep(_ context.Context, _ blockfmt.Ref, stored []byte) error {
	s.bytes.Add(int64(len(stored)))
	s.came <- struct{}{}
	return nil
}

const hopBlocks = 1500 // 270 MB

// BenchmarkHop is one hop over loopback, two agents on one machine: blocks that are pushed, or asked for by 32 readers,
// verified by the receiver or not. Each round is followed by raw TLS 1.3 with the same bytes; "of-tls" is the median of
// the rounds' ratios.
func BenchmarkHop(b *testing.B) {
	blob := hopBlob(b, hopBlocks)
	raw := newRawTLS(b)
	trusting := func(blockfmt.Ref, []byte) error { return nil }
	for _, bm := range []struct {
		name   string
		verify func(blockfmt.Ref, []byte) error
		hop    func(b *testing.B, h *hop)
	}{
		{"push/verified", blockfmt.Verify, hopPush}, {"push/unverified", trusting, hopPush},
		{"want/verified", blockfmt.Verify, hopWant}, {"want/unverified", trusting, hopWant},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.SetBytes(blob.Index.StoredSize())
			b.ReportAllocs()
			var ratios []float64
			for b.Loop() {
				h := newHop(b, blob, bm.verify)
				start := time.Now()
				bm.hop(b, h)
				took := time.Since(start)
				b.StopTimer()
				h.close()
				start = time.Now()
				raw.send(b, blob.Stored)
				ratios = append(ratios, float64(time.Since(start))/float64(took))
				b.StartTimer()
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "of-tls")
		})
	}
}

// hop is a parent with all blocks and a child without any, on hosts that run.
type hop struct {
	im     *stream.Image
	net    *hosts
	parent *stream.Node
	child  *stream.Share
	sink   *sink
	close  func()
}

func newHop(b *testing.B, blob *blocktest.Blob, verify func(blockfmt.Ref, []byte) error) *hop {
	b.StopTimer()
	defer b.StartTimer()
	h := &hop{im: image(b, blob, 1), net: newHosts(b), parent: newNode(b, stream.NodeConfig{}), sink: &sink{came: make(chan struct{}, hopBlocks)}}
	up := share(b, h.parent, stream.ShareConfig{Image: h.im, Store: stored{blob}, Source: stored{blob}})
	node := newNode(b, stream.NodeConfig{Verify: verify})
	h.child = share(b, node, stream.ShareConfig{Image: h.im, Store: h.sink, Recycle: true})
	h.net.of(h.parent)
	h.net.of(node)
	h.close = func() {
		h.child.Close()
		up.Close()
		h.net.kill(node)
		h.net.kill(h.parent)
	}
	return h
}

func hopPush(b *testing.B, h *hop) {
	edge(b, h.net, h.parent, h.child, fed)
	for range h.im.Len() {
		<-h.sink.came
	}
}

func hopWant(b *testing.B, h *hop) {
	p := edge(b, h.net, h.parent, h.child, backup)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < h.im.Len(); i = int(next.Add(1)) - 1 {
				if _, err := p.Block(context.Background(), h.im.Ref(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// stored makes a blob a verified store of itself.
type stored struct{ *blocktest.Blob }

func (stored) Verified() bool                                           { return true }
func (stored) Has(blockfmt.Ref) bool                                    { return true }
func (s stored) Put(context.Context, blockfmt.Ref, []byte) error        { return nil }
func (s stored) Keep(_ context.Context, _ blockfmt.Ref, _ []byte) error { return nil }

// BenchmarkRawTLS is what to compare with: TLS 1.3 over TCP on loopback, one connection, io.Copy at the receiver.
func BenchmarkRawTLS(b *testing.B) {
	blob := hopBlob(b, hopBlocks)
	raw := newRawTLS(b)
	b.SetBytes(int64(len(blob.Stored)))
	for b.Loop() {
		raw.send(b, blob.Stored)
	}
}

type rawTLS struct{ net.Listener }

func newRawTLS(b *testing.B) rawTLS {
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{selfSigned(b)}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return rawTLS{l}
}

// send sends the bytes over a new connection.
func (l rawTLS) send(b *testing.B, bytes []byte) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		_, _ = c.Write(bytes)
	})
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if n, err := io.Copy(io.Discard, c); n != int64(len(bytes)) {
		b.Fatalf("%d bytes: %v", n, err)
	}
}

func selfSigned(b *testing.B) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "xylem"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		b.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
