package stream_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"

	"github.com/xylem-project/xylem/tree/stream"
	"github.com/xylem-project/xylem/tree/stream/streamtest"
)

func TestConns(t *testing.T) {
	t.Run("pipe", func(t *testing.T) {
		streamtest.Conn(t, func(*testing.T) (stream.Conn, stream.Conn) { return stream.Pipe() })
	})
	t.Run("wire", func(t *testing.T) {
		streamtest.Conn(t, func(*testing.T) (stream.Conn, stream.Conn) {
			a, b := net.Pipe()
			return stream.Over(a), stream.Over(b)
		})
	})
	t.Run("libp2p", func(t *testing.T) { streamtest.Conn(t, streamPair) })
}

// recording is a stream whose writes are kept and whose reads come from a buffer.
type recording struct{ bytes.Buffer }

func (*recording) Close() error { return nil }

func frame(m stream.Message) []byte {
	var r recording
	_ = stream.Over(&r).Send(m)
	return r.Bytes()
}

func whole(m stream.Message) []byte { return make([]byte, m.Length) }

// TestWireIsStable: other versions of the agent read these very bytes.
func TestWireIsStable(t *testing.T) {
	for _, tc := range []struct {
		m    stream.Message
		want string
	}{
		{stream.Message{Kind: stream.KindAttach, Image: "d", Epoch: 2, Count: 2, Stripes: 1}, "\x01\x00\x00\x00\x0c\x00\x00\x00\x00\x00\x00\x00\x02\x02\x00\x01d"},
		{stream.Message{Kind: stream.KindWant, Block: 5, Lane: 1, Received: 6}, "\x04\x00\x00\x00\x0d\x00\x00\x00\x05\x01\x00\x00\x00\x00\x00\x00\x00\x06"},
		{stream.Message{Kind: stream.KindData, Block: 1, Offset: 2, Total: 3, AckNow: true, Data: []byte("x")}, "\x06\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x01x"},
	} {
		if got := string(frame(tc.m)); got != tc.want {
			t.Errorf("%+v is %q, want %q", tc.m, got, tc.want)
		}
	}
}

// TestWireTruncated: a frame that ends early is an error, and none but the end between frames is a clean one.
func TestWireTruncated(t *testing.T) {
	for _, m := range streamtest.Messages() {
		b := frame(m)
		for n := range len(b) {
			_, err := stream.Over(&recording{*bytes.NewBuffer(b[:n])}).Receive(whole)
			if want := io.ErrUnexpectedEOF; n == 0 && err != io.EOF || n > 0 && !errors.Is(err, want) {
				t.Errorf("kind %d, %d of %d bytes: %v", m.Kind, n, len(b), err)
			}
		}
	}
}

// TestWireBounds: every length has a bound, which is checked before anything of that length is made.
func TestWireBounds(t *testing.T) {
	for name, b := range map[string]string{
		"kind 0":           "\x00\x00\x00\x00\x00",
		"unknown kind":     "\x0d\x00\x00\x00\x00",
		"long digest":      "\x01\x00\x00\x02\x00",
		"huge data":        "\x06\xff\xff\xff\xff",
		"huge bitmap":      "\x08\x00\x00\x20\x05",
		"short want":       "\x04\x00\x00\x00\x0c",
		"long cancel":      "\x05\x00\x00\x00\x05",
		"want in the push": "\x04\x00\x00\x00\x0d\x00\x00\x00\x05\x02\x00\x00\x00\x00\x00\x00\x00\x06",
		"unknown flag":     "\x06\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x02x",
	} {
		place := func(m stream.Message) []byte {
			t.Errorf("%s: %d bytes are asked for", name, m.Length)
			return nil
		}
		_, err := stream.Over(&recording{*bytes.NewBufferString(b)}).Receive(place)
		if !errors.Is(err, stream.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWireDrops: data that has no place is skipped, and the next message is found.
func TestWireDrops(t *testing.T) {
	data := frame(stream.Message{Kind: stream.KindData, Block: 1, Total: 70000, Data: make([]byte, 70000)})
	c := stream.Over(&recording{*bytes.NewBuffer(append(data, frame(stream.Message{Kind: stream.KindDetach})...))})
	m, err := c.Receive(func(stream.Message) []byte { return nil })
	if err != nil || m.Length != 70000 || m.Data != nil {
		t.Errorf("dropped: %d bytes, length %d, %v", len(m.Data), m.Length, err)
	}
	if m, err := c.Receive(whole); err != nil || m.Kind != stream.KindDetach {
		t.Errorf("next: %+v, %v", m, err)
	}
}

// FuzzReceive: no input makes the parser panic or take more than the bounds, and what it takes, it gives back the same.
func FuzzReceive(f *testing.F) {
	for _, m := range streamtest.Messages() {
		f.Add(frame(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := stream.Over(&recording{*bytes.NewBuffer(bytes.Clone(b))})
		taken := 0
		for {
			m, err := c.Receive(func(m stream.Message) []byte {
				if m.Length > stream.MaxUnit {
					t.Fatalf("%d bytes of data", m.Length)
				}
				return make([]byte, min(m.Length, len(b)))[:min(m.Length, len(b))]
			})
			if err != nil {
				return
			}
			out := frame(m)
			if m.Kind == stream.KindData && m.Length > len(b) {
				return // the test's own bound
			}
			if !bytes.Equal(out, b[taken:taken+len(out)]) {
				t.Fatalf("%x was read as %+v, which is %x", b[taken:], m, out)
			}
			taken += len(out)
			again, err := stream.Over(&recording{*bytes.NewBuffer(out)}).Receive(whole)
			if err != nil || !reflect.DeepEqual(again, m) {
				t.Fatalf("%+v was read again as %+v, %v", m, again, err)
			}
		}
	})
}
