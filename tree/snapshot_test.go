package tree_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

// A tree that is restored goes on: same places, same data, and epochs that beat all former ones.
func TestRestoreGoesOn(t *testing.T) {
	c := newChurn(t, 2, 40, 1)
	for range 500 {
		if err := c.step(); err != nil {
			t.Fatal(err)
		}
	}
	snap := c.Snapshot()
	restored, err := tree.Restore(snap, 1)
	if err != nil {
		t.Fatal(err)
	}
	again := restored.Snapshot()
	if again.Epoch.Compare(snap.Epoch) <= 0 {
		t.Errorf("epoch %v after %v", again.Epoch, snap.Epoch)
	}
	again.Epoch = snap.Epoch
	if was, is := encode(t, snap), encode(t, again); was != is {
		t.Errorf("was %s\nis %s", was, is)
	}

	// What the former owner did after the snapshot is lost, and loses against what the next owner does.
	m := tree.Member{ID: "next"}
	if _, err := c.Join(m); err != nil {
		t.Fatal(err)
	}
	if _, err := restored.Join(m); err != nil {
		t.Fatal(err)
	}
	lost, _ := c.Attachments(m.ID)
	next, _ := restored.Attachments(m.ID)
	for i := range next {
		if _, err := next[i].Accept(lost[i]); !errors.Is(err, tree.ErrStale) {
			t.Errorf("%+v does not refuse %+v: %v", next[i], lost[i], err)
		}
		if got, err := lost[i].Accept(next[i]); err != nil || got != next[i] {
			t.Errorf("%+v does not accept %+v: %v", lost[i], next[i], err)
		}
	}
}

func encode(t *testing.T, snap tree.Snapshot) string {
	t.Helper()
	text, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRestoreRefusesWhatIsNoTree(t *testing.T) {
	tests := map[string]func(*tree.Snapshot){
		"stripes":                func(s *tree.Snapshot) { s.Stripes = 3 },
		"fewer stripes":          func(s *tree.Snapshot) { s.Stripes = 1 },
		"no ID":                  func(s *tree.Snapshot) { s.Members[0].ID = "" },
		"twice":                  func(s *tree.Snapshot) { s.Members[1] = s.Members[0] },
		"missing":                func(s *tree.Snapshot) { s.Members = s.Members[1:] },
		"role":                   func(s *tree.Snapshot) { s.Members[0].Role = 77 },
		"drafted without need":   func(s *tree.Snapshot) { s.Members[0].Role = tree.RoleLeaf },
		"nothing held":           func(s *tree.Snapshot) { s.Members[0].Held = nil },
		"held negative":          func(s *tree.Snapshot) { s.Members[0].Held[0] = -1 },
		"no attachments":         func(s *tree.Snapshot) { s.Members[0].Attachments = nil },
		"attachment of another":  func(s *tree.Snapshot) { s.Members[0].Attachments[0].Child = s.Members[1].ID },
		"of another stripe":      func(s *tree.Snapshot) { s.Members[0].Attachments[0].Stripe = 1 },
		"unknown parent":         func(s *tree.Snapshot) { s.Members[0].Attachments[0].Parent = "nobody" },
		"own parent":             func(s *tree.Snapshot) { s.Members[0].Attachments[0].Parent = s.Members[0].ID },
		"all roots":              func(s *tree.Snapshot) { eachAttachment(s, func(a *tree.Attachment) { a.Parent = tree.Registry }) },
		"no root":                func(s *tree.Snapshot) { eachAttachment(s, func(a *tree.Attachment) { a.Parent = s.Members[3].ID }) },
		"all leaves":             func(s *tree.Snapshot) { eachAttachment(s, func(a *tree.Attachment) { a.Level = tree.Leaf }) },
		"all of level 0":         func(s *tree.Snapshot) { eachAttachment(s, func(a *tree.Attachment) { a.Level = 0 }) },
		"level below leaf":       func(s *tree.Snapshot) { s.Members[0].Attachments[0].Level = -2 },
		"absurd level":           func(s *tree.Snapshot) { s.Members[0].Attachments[0].Level = 1 << 40 },
		"epoch twice":            func(s *tree.Snapshot) { s.Members[0].Attachments[0].Epoch = s.Members[1].Attachments[1].Epoch },
		"epoch after the tree's": func(s *tree.Snapshot) { s.Epoch.Seq = 1 },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, 2)
			grow(t, tr, 9)
			snap := tr.Snapshot()
			spoil(&snap)
			if _, err := tree.Restore(snap, 1); !errors.Is(err, tree.ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func eachAttachment(s *tree.Snapshot, f func(*tree.Attachment)) {
	for _, m := range s.Members {
		for i := range m.Attachments {
			f(&m.Attachments[i])
		}
	}
}

func TestRestoreNeedsANewTerm(t *testing.T) {
	tr, err := tree.New(tree.Config{Epoch: tree.Epoch{Term: 7}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Restore(tr.Snapshot(), 7); !errors.Is(err, tree.ErrStale) {
		t.Errorf("error %v", err)
	}
	restored, err := tree.Restore(tr.Snapshot(), 8)
	if err != nil || restored.Len() != 0 {
		t.Error(restored, err)
	}
}

// Whatever is stored, Restore returns an error or a tree that works.
func FuzzRestore(f *testing.F) {
	for _, stripes := range []int{1, 2, 4} {
		c := newChurn(f, stripes, 6, 1)
		text, err := json.Marshal(c.Snapshot())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"members":[{"id":"a","role":"leaf","held":[0,0],"attachments":[{},{}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var snap tree.Snapshot
		if json.Unmarshal(text, &snap) != nil {
			return
		}
		tr, err := tree.Restore(snap, 1<<63)
		if err != nil {
			if !errors.Is(err, tree.ErrInvalid) && !errors.Is(err, tree.ErrStale) {
				t.Fatalf("kind of error: %v", err)
			}
			return
		}
		for _, m := range append(slices.Clone(snap.Members), tree.Placed{Member: tree.Member{ID: "new"}}) {
			if _, err := tr.Join(m.Member); err != nil && !errors.Is(err, tree.ErrExists) {
				t.Fatal(err)
			}
			if _, err := tr.Fail(m.ID); err != nil {
				t.Fatal(err)
			}
			if err := tr.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestAcceptRefusesStaleAttachments(t *testing.T) {
	at := func(child tree.ID, stripe int, term, seq uint64) tree.Attachment {
		return tree.Attachment{Child: child, Stripe: stripe, Parent: "p", Epoch: tree.Epoch{Term: term, Seq: seq}}
	}
	held := at("a", 0, 2, 5)
	for _, test := range []struct {
		next tree.Attachment
		err  error
	}{
		{at("a", 0, 2, 6), nil},
		{at("a", 0, 3, 0), nil},
		{held, nil}, // told again
		{at("a", 0, 2, 4), tree.ErrStale},
		{at("a", 0, 1, 9), tree.ErrStale},
		{tree.Attachment{Child: "a", Parent: "q", Epoch: held.Epoch}, tree.ErrStale},
		{at("b", 0, 2, 6), tree.ErrInvalid},
		{at("a", 1, 2, 6), tree.ErrInvalid},
	} {
		got, err := held.Accept(test.next)
		want := test.next
		if test.err != nil {
			want = held
		}
		if !errors.Is(err, test.err) || got != want {
			t.Errorf("%+v: %+v, %v", test.next, got, err)
		}
	}
	if got, err := (tree.Attachment{}).Accept(held); err != nil || got != held {
		t.Errorf("nothing before: %+v, %v", got, err)
	}
}

func TestQueriesOfNobody(t *testing.T) {
	tr := newTree(t, 2)
	grow(t, tr, 1)
	for _, stripe := range []int{-1, 2, 1 << 40} {
		_, root := tr.Root(stripe)
		_, parent := tr.Parent("m0", stripe)
		if root || parent || tr.Children("m0", stripe) != nil || tr.Backups("m0", stripe) != nil || tr.Standbys(stripe) != nil || tr.Height(stripe) != 0 {
			t.Errorf("there is a stripe %d", stripe)
		}
	}
	if _, err := tr.Attachments("x"); !errors.Is(err, tree.ErrUnknown) {
		t.Errorf("error %v", err)
	}
	if _, ok := tr.Member("x"); ok {
		t.Error("x is a member")
	}
	if err := errors.Join(new(tree.Role).UnmarshalText([]byte("king"))); !errors.Is(err, tree.ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if _, err := tr.SetRole("m0", 9); !errors.Is(err, tree.ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if _, err := tr.Join(tree.Member{}); !errors.Is(err, tree.ErrInvalid) {
		t.Errorf("error %v", err)
	}
	if got, _ := tr.Join(tree.Member{ID: "m1"}); len(got) == 0 || tr.Epoch() != got[len(got)-1].Epoch {
		t.Errorf("epoch %v after %v", tr.Epoch(), got)
	}
}

func TestPlacedIsThePartOfASnapshot(t *testing.T) {
	tr, err := tree.New(tree.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []tree.ID{"a", "b", "c"} {
		if _, err := tr.Join(tree.Member{ID: id, Zone: "z"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.Report("b", []int{3, 4}); err != nil {
		t.Fatal(err)
	}
	for _, want := range tr.Snapshot().Members {
		if got, err := tr.Placed(want.ID); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v %v, want %+v", got, err, want)
		}
	}
	if _, err := tr.Placed("x"); !errors.Is(err, tree.ErrUnknown) {
		t.Errorf("%v", err)
	}
}
