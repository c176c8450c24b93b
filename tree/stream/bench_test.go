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
	"sync"
	"sync/atomic"
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
	blob := &blocktest.Blob{Stored: make([]byte, 0, blocks*(181<<10))}
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
// verified by the receiver or not. Compare with BenchmarkRawTLS of the same run.
func BenchmarkHop(b *testing.B) {
	blob := hopBlob(b, hopBlocks)
	trusting := func(blockfmt.Ref, []byte) error { return nil }
	for _, bm := range []struct {
		name   string
		verify func(blockfmt.Ref, []byte) error
		hop    func(b *testing.B, im *stream.Image, verify func(blockfmt.Ref, []byte) error, blob *blocktest.Blob)
	}{
		{"push/verified", blockfmt.Verify, hopPush}, {"push/unverified", trusting, hopPush},
		{"want/verified", blockfmt.Verify, hopWant}, {"want/unverified", trusting, hopWant},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.SetBytes(blob.Index.StoredSize())
			b.ReportAllocs()
			for b.Loop() {
				bm.hop(b, image(b, blob, 1), bm.verify, blob)
			}
		})
	}
}

func hopEdge(b *testing.B, im *stream.Image, verify func(blockfmt.Ref, []byte) error, blob *blocktest.Blob, at stream.Attachment) (*stream.Peer, *sink, func()) {
	b.StopTimer()
	net := newHosts(b)
	parent := newNode(b, stream.NodeConfig{})
	up := share(b, parent, stream.ShareConfig{Image: im, Store: stored{blob}, Source: stored{blob}})
	s := &sink{came: make(chan struct{}, im.Len())}
	node := newNode(b, stream.NodeConfig{Verify: verify})
	child := share(b, node, stream.ShareConfig{Image: im, Store: s})
	net.of(node)
	net.of(parent)
	b.StartTimer()
	p := edge(b, net, parent, child, at)
	return p, s, func() {
		b.StopTimer()
		child.Close()
		up.Close()
		b.StartTimer()
	}
}

func hopPush(b *testing.B, im *stream.Image, verify func(blockfmt.Ref, []byte) error, blob *blocktest.Blob) {
	_, s, done := hopEdge(b, im, verify, blob, fed)
	for range im.Len() {
		<-s.came
	}
	done()
}

func hopWant(b *testing.B, im *stream.Image, verify func(blockfmt.Ref, []byte) error, blob *blocktest.Blob) {
	p, _, done := hopEdge(b, im, verify, blob, backup)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < im.Len(); i = int(next.Add(1)) - 1 {
				if _, err := p.Block(context.Background(), im.Ref(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	done()
}

// stored makes a blob a verified store of itself.
type stored struct{ *blocktest.Blob }

func (stored) Verified() bool                                           { return true }
func (stored) Has(blockfmt.Ref) bool                                    { return true }
func (s stored) Put(context.Context, blockfmt.Ref, []byte) error        { return nil }
func (s stored) Keep(_ context.Context, _ blockfmt.Ref, _ []byte) error { return nil }

// BenchmarkRawTLS is what to compare with: TLS 1.3 over TCP on loopback, one connection, io.Copy at both ends.
func BenchmarkRawTLS(b *testing.B) {
	cert := selfSigned(b)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	blob := hopBlob(b, hopBlocks)
	var wg sync.WaitGroup
	defer wg.Wait()
	b.SetBytes(int64(len(blob.Stored)))
	for b.Loop() {
		wg.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Write(blob.Stored)
		})
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, c); n != int64(len(blob.Stored)) {
			b.Fatalf("%d bytes: %v", n, err)
		}
		c.Close()
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
