// Package streamtest tests what carries edges of function trees: a conformance suite for stream.Conn, which every network,
// real, in memory or modelled, has to pass. It is imported by tests only.
package streamtest

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"sync"
	"testing"

	"github.com/xylem-project/xylem/tree/stream"
)

// Messages returns one message of each kind, with everything set that the kind carries.
func Messages() []stream.Message {
	return []stream.Message{
		{Kind: stream.KindAttach, Image: "sha256:0123", Epoch: 1 << 60, Count: 4, Stripes: stream.StripesOf(1, 3)},
		{Kind: stream.KindAccept, Epoch: 7},
		{Kind: stream.KindRefuse, Reason: stream.ReasonStale},
		{Kind: stream.KindWant, Block: 1<<24 - 1, Lane: stream.LaneBackground, Received: 1 << 40},
		{Kind: stream.KindCancel, Block: 70000},
		{Kind: stream.KindData, Block: 3, Offset: 8, Length: 5, Total: 13, AckNow: true, Data: []byte("bytes")},
		{Kind: stream.KindFail, Block: 9, Reason: stream.ReasonNotFound},
		{Kind: stream.KindHave, Block: 64, Data: []byte{1, 0, 128}},
		{Kind: stream.KindAck, Received: 1 << 50},
		{Kind: stream.KindDetach},
		{Kind: stream.KindBusy},
		{Kind: stream.KindHurry, Block: 1},
	}
}

// Conn checks the contract of stream.Conn. open returns the two ends of a new one.
func Conn(t *testing.T, open func(t *testing.T) (a, b stream.Conn)) {
	t.Run("all kinds both ways", func(t *testing.T) { allKinds(t, open) })
	t.Run("in order", func(t *testing.T) { inOrder(t, open) })
	t.Run("close ends the other side", func(t *testing.T) {
		a, b := open(t)
		defer b.Close()
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if m, err := b.Receive(place); err == nil {
			t.Errorf("received %+v from a closed end", m)
		}
	})
	t.Run("close ends a receive that waits", func(t *testing.T) {
		a, b := open(t)
		defer b.Close()
		errs := make(chan error)
		go func() {
			_, err := a.Receive(place)
			errs <- err
		}()
		a.Close()
		if err := <-errs; err == nil {
			t.Error("a receive on a closed end gave a message")
		}
		if err := a.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
	t.Run("close ends a send that waits", func(t *testing.T) {
		a, b := open(t)
		defer b.Close()
		errs := make(chan error)
		go func() { // nobody receives
			m := stream.Message{Kind: stream.KindData, Total: 1 << 20, Length: 1 << 20, Data: make([]byte, 1<<20)}
			for {
				if err := a.Send(m); err != nil {
					errs <- err
					return
				}
			}
		}()
		a.Close()
		<-errs
	})
}

func place(m stream.Message) []byte { return make([]byte, m.Length) }

func allKinds(t *testing.T, open func(t *testing.T) (a, b stream.Conn)) {
	a, b := open(t)
	defer a.Close()
	defer b.Close()
	for _, ends := range [][2]stream.Conn{{a, b}, {b, a}} {
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, m := range Messages() {
				if err := ends[0].Send(m); err != nil {
					t.Errorf("send %+v: %v", m, err)
				}
			}
		})
		for _, want := range Messages() {
			if got, err := ends[1].Receive(place); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("received %+v, %v; want %+v", got, err, want)
			}
		}
		wg.Wait()
	}
}

func inOrder(t *testing.T, open func(t *testing.T) (a, b stream.Conn)) {
	a, b := open(t)
	defer b.Close()
	const n = 200
	data := bytes.Repeat([]byte("0123456789"), 5000)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			if err := a.Send(stream.Message{Kind: stream.KindData, Block: i, Total: len(data), Length: len(data), Data: data}); err != nil {
				t.Errorf("send %d: %v", i, err)
			}
		}
	})
	for i := range n {
		if m, err := b.Receive(place); err != nil || m.Block != i || !bytes.Equal(m.Data, data) {
			t.Fatalf("message %d: block %d, %d bytes, %v", i, m.Block, len(m.Data), err)
		}
	}
	wg.Wait()
	a.Close()
	if _, err := b.Receive(place); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("after the last message: %v", err)
	}
}
