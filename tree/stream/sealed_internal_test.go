package stream

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/sec"
)

// writes records the writes that reach the network; the one at which it breaks fails.
type writes struct {
	net.Conn
	list   [][]byte
	breaks int
}

var errBroken = errors.New("broken")

func (w *writes) Write(b []byte) (int, error) {
	if w.breaks--; w.breaks == 0 {
		return 0, errBroken
	}
	w.list = append(w.list, bytes.Clone(b))
	return len(b), nil
}

// cutter stands for TLS: it writes records.
type cutter struct {
	sec.SecureConn
	below net.Conn
}

func (c cutter) Write(b []byte) (int, error) {
	for record := range slices.Chunk(b, recordSize) {
		if _, err := c.below.Write(record); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// TestSealedWrites: what is written goes out at once, whole, and in one call whatever its size.
func TestSealedWrites(t *testing.T) {
	network := new(writes)
	below := newRecords(network)
	c := &sealedConn{cutter{below: below}, below}
	var all []byte
	for i, n := range []int{1, recordSize, recordSize + 1, batchSize, 3 * batchSize, 7} {
		b := bytes.Repeat([]byte{byte(i)}, n)
		all = append(all, b...)
		if got, err := c.Write(b); got != n || err != nil {
			t.Errorf("write of %d: %d, %v", n, got, err)
		}
		if len(network.list) != i+1 || !bytes.Equal(network.list[i], b) {
			t.Fatalf("write of %d bytes made %d calls, want 1", n, len(network.list)-i)
		}
	}
	if !bytes.Equal(slices.Concat(network.list...), all) {
		t.Error("the bytes came in another order")
	}
}

// TestSealedWriteFails: an error of the network reaches the writer, though TLS did not see it.
func TestSealedWriteFails(t *testing.T) {
	below := newRecords(&writes{breaks: 1})
	c := &sealedConn{cutter{below: below}, below}
	if _, err := c.Write(make([]byte, batchSize)); !errors.Is(err, errBroken) {
		t.Errorf("write to a network that is broken: %v", err)
	}
}
