package stream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// conns are the kinds of Conn that scripted peers speak over: one hands bytes over, the other reads them into place.
func conns(t *testing.T, test func(t *testing.T, open func() (stream.Conn, stream.Conn))) {
	t.Run("pipe", func(t *testing.T) { test(t, stream.Pipe) })
	t.Run("wire", func(t *testing.T) {
		test(t, func() (stream.Conn, stream.Conn) {
			a, b := net.Pipe()
			return stream.Over(a), stream.Over(b)
		})
	})
}

// script is one end of an edge that a test speaks by hand.
type script struct {
	stream.Conn
	t  *testing.T
	wg sync.WaitGroup
}

func (s *script) send(list ...stream.Message) {
	for _, m := range list {
		if s.Send(m) != nil {
			return // cut off already
		}
	}
}

// expect returns the next message of a kind; others that may come in between are skipped.
func (s *script) expect(kind stream.Kind) stream.Message {
	s.t.Helper()
	for {
		m, err := s.Receive(whole)
		if err != nil {
			s.t.Errorf("waiting for a message of kind %d: %v", kind, err)
			return m
		}
		if m.Kind == kind {
			return m
		}
	}
}

// discard takes everything until the edge ends.
func (s *script) discard() {
	s.wg.Go(func() {
		for {
			if _, err := s.Receive(whole); err != nil {
				return
			}
		}
	})
}

// scriptedParent returns a Peer whose parent is a script, which has accepted it.
func scriptedParent(t *testing.T, open func() (stream.Conn, stream.Conn), s *stream.Share, at stream.Attachment) (*stream.Peer, *script) {
	t.Helper()
	up, down := open()
	sc := &script{Conn: up, t: t}
	sc.wg.Go(func() {
		sc.expect(stream.KindAttach)
		sc.send(stream.Message{Kind: stream.KindAccept, Epoch: at.Epoch})
	})
	p, err := s.Attach(t.Context(), down, "scripted", at)
	if err != nil {
		t.Fatal(err)
	}
	sc.wg.Wait()
	t.Cleanup(func() {
		p.Close()
		up.Close()
		sc.wg.Wait()
	})
	return p, sc
}

// pieces cuts a block into data messages of at most unit bytes.
func pieces(blob *blocktest.Blob, i, unit int) (list []stream.Message) {
	stored := blob.Bytes(blob.Index.Ref(i))
	for off := 0; off < len(stored); off += unit {
		part := stored[off:min(off+unit, len(stored))]
		list = append(list, stream.Message{Kind: stream.KindData, Block: i, Offset: off, Length: len(part), Total: len(stored), Data: part})
	}
	return list
}

// TestBadParents: whatever a parent does against the protocol, it is cut off and reported, what it sent is not kept, and
// other reads fail in a way that lets them go on elsewhere.
func TestBadParents(t *testing.T) {
	blob := blocktest.NewBlob(1, 200<<10, 8<<10)
	first := pieces(blob, 0, 1000)
	other := pieces(blob, 1, 1<<20)[0]
	edit := func(m stream.Message, f func(m *stream.Message)) stream.Message {
		f(&m)
		return m
	}
	var partial []stream.Message
	for i := 0; i < 22; i += 2 {
		partial = append(partial, pieces(blob, i, 100)[0])
	}
	flipped := edit(pieces(blob, 0, 1<<20)[0], func(m *stream.Message) { m.Data = blocktest.WrongBytes.Apply(m.Data) })
	swapped := edit(flipped, func(m *stream.Message) {
		m.Data = append(append([]byte(nil), other.Data...), m.Data...)[:m.Total]
	})
	for name, tc := range map[string]struct {
		at    stream.Attachment
		sends []stream.Message
		kind  error
	}{
		"wrong bytes":        {fed, []stream.Message{flipped}, blockfmt.ErrCorrupt},
		"another block":      {fed, []stream.Message{swapped}, blockfmt.ErrCorrupt},
		"too short":          {fed, []stream.Message{edit(other, func(m *stream.Message) { m.Total-- })}, blockfmt.ErrCorrupt},
		"too long":           {fed, []stream.Message{edit(other, func(m *stream.Message) { m.Total++ })}, blockfmt.ErrCorrupt},
		"more than the rest": {fed, []stream.Message{edit(other, func(m *stream.Message) { m.Data = append(m.Data[:m.Length:m.Length], 1); m.Length++ })}, stream.ErrProtocol},
		"wrong index":        {fed, []stream.Message{edit(other, func(m *stream.Message) { m.Block = 1000 })}, stream.ErrProtocol},
		"gap":                {fed, []stream.Message{first[0], first[2]}, stream.ErrProtocol},
		"piece twice":        {fed, []stream.Message{first[0], first[0]}, stream.ErrProtocol},
		"empty piece":        {fed, []stream.Message{edit(first[0], func(m *stream.Message) { m.Data, m.Length = []byte{}, 0 })}, stream.ErrProtocol},
		"not asked":          {backup, []stream.Message{other}, stream.ErrProtocol},
		"not its stripe":     {fed, []stream.Message{other}, stream.ErrProtocol},
		"many in pieces":     {fed, partial, stream.ErrProtocol},
		"a want":             {fed, []stream.Message{{Kind: stream.KindWant}}, stream.ErrProtocol},
		"accept again":       {fed, []stream.Message{{Kind: stream.KindAccept, Epoch: 1}}, stream.ErrProtocol},
		"have beyond":        {fed, []stream.Message{{Kind: stream.KindHave, Block: 24, Data: []byte{0xff}}}, stream.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			conns(t, func(t *testing.T, open func() (stream.Conn, stream.Conn)) {
				stripes := 1
				if name == "not its stripe" {
					stripes = 2
				}
				seen, store := newReports(), new(blocktest.Memory)
				node := newNode(t, stream.NodeConfig{Report: seen.add})
				s := share(t, node, stream.ShareConfig{Image: image(t, blob, stripes), Store: store})
				p, sc := scriptedParent(t, open, s, tc.at)
				read := make(chan error, 1)
				go func() {
					_, err := p.Block(context.Background(), blob.Index.Ref(23))
					read <- err
				}()
				sc.expect(stream.KindWant)
				sc.discard()
				sc.send(tc.sends...)
				<-p.Done()
				wantErr(t, "another read", <-read, blockfmt.ErrTransient)
				<-seen.came
				if list := seen.all(); len(list) != 1 || list[0].Peer != "scripted" || !errors.Is(list[0].Reason, tc.kind) {
					t.Errorf("reported %v, want %v", list, tc.kind)
				}
				if store.Len() != 0 || s.Have() != 0 {
					t.Errorf("%d blocks are kept, %d are offered", store.Len(), s.Have())
				}
				wantErr(t, "allowed again", node.Allowed("scripted"), blockfmt.ErrDenied)
			})
		})
	}
}

// TestReadOfWrongBytes: the very read that gets wrong bytes learns that they were.
func TestReadOfWrongBytes(t *testing.T) {
	blob := blocktest.NewBlob(1, 64<<10, 8<<10)
	conns(t, func(t *testing.T, open func() (stream.Conn, stream.Conn)) {
		s := share(t, newNode(t, stream.NodeConfig{}), stream.ShareConfig{Image: image(t, blob, 1)})
		p, sc := scriptedParent(t, open, s, backup)
		sc.wg.Go(func() {
			m := sc.expect(stream.KindWant)
			data := pieces(blob, m.Block, 1<<20)[0]
			data.Data = blocktest.WrongBytes.Apply(data.Data)
			sc.send(data)
		})
		_, err := p.Block(t.Context(), blob.Index.Ref(3))
		wantErr(t, "read", err, blockfmt.ErrCorrupt)
	})
}

// scriptedChild returns a script that is served by the node, and what Serve returns.
func scriptedChild(t *testing.T, open func() (stream.Conn, stream.Conn), n *stream.Node, name stream.PeerID) (*script, chan error) {
	up, down := open()
	sc := &script{Conn: down, t: t}
	served := make(chan error, 1)
	sc.wg.Go(func() { served <- n.Serve(context.Background(), up, name) })
	t.Cleanup(func() {
		down.Close()
		sc.wg.Wait()
	})
	return sc, served
}

func attach(im *stream.Image, at stream.Attachment) stream.Message {
	return stream.Message{Kind: stream.KindAttach, Image: string(im.Digest()), Epoch: at.Epoch, Count: uint8(im.StripeCount()), Stripes: at.Stripes}
}

func TestBadChildren(t *testing.T) {
	blob := blocktest.NewBlob(1, 4<<20, 8<<10)
	im := image(t, blob, 1)
	var flood, churn []stream.Message
	for i := range stream.MaxWants + 1 {
		flood = append(flood, stream.Message{Kind: stream.KindWant, Block: i})
	}
	for i := range 100000 {
		churn = append(churn, stream.Message{Kind: stream.KindWant, Block: i % 100}, stream.Message{Kind: stream.KindCancel, Block: i % 100})
	}
	for name, sends := range map[string][]stream.Message{
		"no attach":       {{Kind: stream.KindWant}},
		"wrong index":     {attach(im, fed), {Kind: stream.KindWant, Block: im.Len()}},
		"data":            {attach(im, fed), {Kind: stream.KindData, Total: 1, Length: 1, Data: []byte{1}}},
		"attach again":    {attach(im, fed), attach(im, fed)},
		"ack of nothing":  {attach(im, backup), {Kind: stream.KindAck, Received: 1}},
		"want from ahead": {attach(im, backup), {Kind: stream.KindWant, Received: 1}},
		"have beyond":     {attach(im, fed), {Kind: stream.KindHave, Block: im.Len() &^ 7, Data: []byte{0xff}}},
		"flood of wants":  append([]stream.Message{attach(im, backup)}, flood...),
		"wants, cancels":  append([]stream.Message{attach(im, backup)}, churn...),
	} {
		t.Run(name, func(t *testing.T) {
			conns(t, func(t *testing.T, open func() (stream.Conn, stream.Conn)) {
				seen := newReports()
				parent := newNode(t, stream.NodeConfig{Report: seen.add})
				stuck := blockfmt.SourceFunc(func(ctx context.Context, _ blockfmt.Ref) ([]byte, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
				share(t, parent, stream.ShareConfig{Image: im, Source: stuck})
				sc, served := scriptedChild(t, open, parent, "child")
				if name != "wants, cancels" { // whose answers are not taken
					sc.discard()
				}
				sc.send(sends...)
				wantErr(t, "served", <-served, stream.ErrProtocol)
				if list := seen.all(); len(list) != 1 || list[0].Peer != "child" {
					t.Errorf("reported %v", list)
				}
			})
		})
	}
}

// TestRefusals: what is no child's fault is refused with a reason, and nobody is cut off.
func TestRefusals(t *testing.T) {
	blob, unknown := blocktest.NewBlob(1, 64<<10, 8<<10), blocktest.NewBlob(2, 64<<10, 8<<10)
	networks(t, func(t *testing.T, net network) {
		seen := newReports()
		parent := newNode(t, stream.NodeConfig{Report: seen.add, Edges: 2})
		s := share(t, parent, stream.ShareConfig{Image: image(t, blob, 2), Store: full(t, blob)})
		node := newNode(t, stream.NodeConfig{})
		child := share(t, node, stream.ShareConfig{Image: image(t, blob, 2)})
		refused := func(what string, c *stream.Share, at stream.Attachment, kind error) {
			t.Helper()
			_, err := net.attach(t.Context(), parent, c, at)
			wantErr(t, what, err, kind)
		}
		foreign := newNode(t, stream.NodeConfig{})
		refused("unknown image", share(t, foreign, stream.ShareConfig{Image: image(t, unknown, 2)}), backup, blockfmt.ErrNotFound)
		refused("other stripes", share(t, foreign, stream.ShareConfig{Image: image(t, blob, 4)}), backup, blockfmt.ErrUnsupported)
		refused("no such stripe", child, stream.Attachment{Epoch: 1, Stripes: stream.StripesOf(2)}, blockfmt.ErrUnsupported)
		s.Expect(net.name(node), stream.StripesOf(1), 7)
		refused("old epoch", child, stream.Attachment{Epoch: 6, Stripes: stream.StripesOf(1)}, stream.ErrStale)
		edge(t, net, parent, child, stream.Attachment{Epoch: 7, Stripes: stream.StripesOf(1)})
		edge(t, net, parent, child, stream.Attachment{Epoch: 6, Stripes: stream.StripesOf(0)})
		refused("too many edges", child, backup, blockfmt.ErrTransient)
		if list := seen.all(); len(list) != 0 {
			t.Errorf("cut off: %v", list)
		}
		if n := parent.Counters().Refused.Load(); n != 5 {
			t.Errorf("%d refused, want 5", n)
		}
	})
}

// TestBadGreetings: a parent that answers an attachment with nonsense does not become one.
func TestBadGreetings(t *testing.T) {
	blob := blocktest.NewBlob(1, 64<<10, 8<<10)
	for name, tc := range map[string]struct {
		answer stream.Message
		kind   error
	}{
		"another epoch":   {stream.Message{Kind: stream.KindAccept, Epoch: 2}, stream.ErrProtocol},
		"data":            {pieces(blob, 0, 1<<20)[0], stream.ErrProtocol},
		"unknown refusal": {stream.Message{Kind: stream.KindRefuse, Reason: 99}, blockfmt.ErrTransient},
		"denied":          {stream.Message{Kind: stream.KindRefuse, Reason: stream.ReasonDenied}, blockfmt.ErrDenied},
		// That it cannot get right bytes itself does not make it a source of wrong ones.
		"corrupt": {stream.Message{Kind: stream.KindRefuse, Reason: stream.ReasonCorrupt}, blockfmt.ErrTransient},
	} {
		t.Run(name, func(t *testing.T) {
			seen := newReports()
			s := share(t, newNode(t, stream.NodeConfig{Report: seen.add}), stream.ShareConfig{Image: image(t, blob, 1)})
			up, down := stream.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = up.Receive(whole)
				_ = up.Send(tc.answer)
				if _, err := up.Receive(whole); err != io.EOF {
					t.Errorf("edge goes on: %v", err)
				}
			})
			_, err := s.Attach(t.Context(), down, "scripted", fed)
			wantErr(t, "attach", err, tc.kind)
			wg.Wait()
			if cut := len(seen.all()) == 1; cut != (tc.kind == stream.ErrProtocol) {
				t.Errorf("cut off: %v", seen.all())
			}
		})
	}
}
