package tree_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/tree"
)

// Whatever happens to members of all roles: the tree is sound, its changes tell the whole state, and each event has few.
func TestAnyHistoryKeepsTheTreeSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		t.Repeat(map[string]func(*rapid.T){
			"join":    h.join,
			"leave":   h.leave,
			"fail":    h.fail,
			"role":    h.setRole,
			"report":  h.report,
			"restore": h.restore,
			"":        h.check,
		})
	})
}

// history is a tree that rapid plays with, and what its changes told.
type history struct {
	tree    *tree.Tree
	told    mirror
	members []tree.ID
	next    int
	term    uint64
	roles   *rapid.Generator[tree.Role]
}

func newHistory(t *rapid.T) *history {
	tr, err := tree.New(tree.Config{Stripes: rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "stripes")})
	if err != nil {
		t.Fatal(err)
	}
	roles := rapid.SampledFrom([]tree.Role{tree.RoleAny, tree.RoleAny, tree.RoleAny, tree.RoleSpare, tree.RoleLeaf})
	return &history{tree: tr, told: mirror{}, roles: roles}
}

func (h *history) join(t *rapid.T) {
	for range rapid.IntRange(1, 5).Draw(t, "count") {
		m := tree.Member{ID: tree.ID(fmt.Sprint("m", h.next)), Zone: rapid.SampledFrom(zoneNames).Draw(t, "zone"), Role: h.roles.Draw(t, "role")}
		h.next++
		h.members = append(h.members, m.ID)
		changes, err := h.tree.Join(m)
		h.apply(t, changes, err, "")
	}
}

func (h *history) draw(t *rapid.T) tree.ID {
	if len(h.members) == 0 {
		t.Skip("no members")
	}
	return rapid.SampledFrom(h.members).Draw(t, "member")
}

func (h *history) leave(t *rapid.T) {
	id := h.draw(t)
	changes, err := h.tree.Leave(id)
	h.gone(t, id, changes, err, "")
}

func (h *history) fail(t *rapid.T) {
	id := h.draw(t)
	changes, err := h.tree.Fail(id)
	h.gone(t, id, changes, err, id)
}

func (h *history) gone(t *rapid.T, id tree.ID, changes []tree.Change, err error, failed tree.ID) {
	for _, c := range changes {
		if failed != "" && (c.Old == failed || c.Parent == failed || slices.Contains(c.Backups, failed)) {
			t.Fatalf("%+v after %s failed", c, failed)
		}
	}
	h.members = slices.DeleteFunc(h.members, func(m tree.ID) bool { return m == id })
	delete(h.told, id)
	h.apply(t, changes, err, failed)
}

func (h *history) setRole(t *rapid.T) {
	changes, err := h.tree.SetRole(h.draw(t), h.roles.Draw(t, "role"))
	h.apply(t, changes, err, "")
}

func (h *history) report(t *rapid.T) {
	held := rapid.SliceOfN(rapid.IntRange(0, 100), h.tree.Stripes(), h.tree.Stripes()).Draw(t, "held")
	if err := h.tree.Report(h.draw(t), held); err != nil {
		t.Fatal(err)
	}
}

// restore goes on with a tree made of what the changes told, kept as JSON.
func (h *history) restore(t *rapid.T) {
	snap := tree.Snapshot{Stripes: h.tree.Stripes(), Epoch: h.tree.Epoch()}
	for id, attachments := range h.told {
		m, _ := h.tree.Member(id)
		snap.Members = append(snap.Members, tree.Placed{Member: m, Held: make([]int, h.tree.Stripes()), Attachments: attachments})
	}
	text, err := json.Marshal(snap)
	if err != nil {
		t.Fatal(err)
	}
	snap = tree.Snapshot{}
	if err := json.Unmarshal(text, &snap); err != nil {
		t.Fatal(err)
	}
	h.term++
	if h.tree, err = tree.Restore(snap, h.term); err != nil {
		t.Fatal(err)
	}
}

func (h *history) apply(t *rapid.T, changes []tree.Change, err error, failed tree.ID) {
	if err == nil {
		err = h.told.apply(h.tree, changes, failed)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (h *history) check(t *rapid.T) {
	for _, check := range []func() error{h.tree.Check, h.tree.CheckIndexes, func() error { return h.told.same(h.tree) }} {
		if err := check(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := h.tree.Len(), len(h.members); got != want {
		t.Fatalf("%d members of %d", got, want)
	}
}

// Two trees with the same history are the same: nothing depends on chance or on the order of a map.
func TestSameHistorySameTree(t *testing.T) {
	run := func() string {
		c := newChurn(t, 2, 100, 3)
		for range 1000 {
			if err := c.step(); err != nil {
				t.Fatal(err)
			}
		}
		return draw(c.Tree)
	}
	if one, other := run(), run(); one != other {
		t.Errorf("%s\ndiffers from\n%s", one, other)
	}
}

// A root that fails is followed by the first of its standbys, if there are members enough that it is the root of one stripe only.
func TestFirstStandbyFollowsTheRoot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.roles = rapid.Just(tree.RoleAny)
		for more := rapid.IntRange(0, 10).Draw(t, "more"); more >= 0 || h.tree.Len() <= h.tree.Stripes(); more-- {
			h.join(t)
			h.report(t)
		}
		stripe := rapid.IntRange(0, h.tree.Stripes()-1).Draw(t, "stripe")
		root, _ := h.tree.Root(stripe)
		standbys := h.tree.Standbys(stripe)
		if _, err := h.tree.Fail(root); err != nil {
			t.Fatal(err)
		}
		if got, ok := h.tree.Root(stripe); ok != (len(standbys) > 0) || ok && got != standbys[0] {
			t.Fatalf("%q follows %s, standbys %v\n%s", got, root, standbys, draw(h.tree))
		}
	})
}
