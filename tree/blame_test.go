package tree_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/xylem-project/xylem/tree"
)

// leaves settles a forest and returns who is RoleLeaf in an image's tree.
func leaves(t *testing.T, f *tree.Forest, image string) (ids []tree.ID) {
	t.Helper()
	if err := settle(f, 100); err != nil {
		t.Fatal(err)
	}
	for _, m := range f.Tree(image).Snapshot().Members {
		if m.Role == tree.RoleLeaf {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// grove is a forest with one tree of machines m0, m1, …
func grove(t *testing.T, n int) *tree.Forest {
	t.Helper()
	f := newForest(t, tree.ForestConfig{})
	for i := range n {
		enter(t, f, "image", tree.ID(fmt.Sprint("m", i)))
	}
	return f
}

func report(t *testing.T, f *tree.Forest, machines ...tree.Machine) {
	t.Helper()
	for _, m := range machines {
		if err := f.SetMachine(m); err != nil {
			t.Fatal(err)
		}
	}
}

// A machine is slow if it keeps others waiting who can take more, and others are known to feed more. In two stripes.
func TestWhoIsSlow(t *testing.T) {
	below := func(rate int64) []tree.Machine { // whoever is below a slow machine sends little
		return []tree.Machine{{ID: "m1", Sent: rate, Received: 600}, {ID: "m2", Sent: rate, Received: 600}}
	}
	fast := []tree.Machine{{ID: "m3", Sent: 1000, Received: 600}, {ID: "m4", Sent: 900, Received: 600}}
	for name, tc := range map[string]struct {
		of   tree.Machine
		more []tree.Machine
		slow bool
	}{
		"a tenth":                            {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m1", "m2"}}, slices.Concat(below(50), fast), true},
		"a tenth for one child":              {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m1"}}, slices.Concat(below(50), fast), true},
		"a tenth, as is known elsewhere":     {tree.Machine{Uplink: 100}, slices.Concat(below(50), fast), true},
		"a third":                            {tree.Machine{Uplink: 330, Waiting: []tree.ID{"m1", "m2"}}, slices.Concat(below(50), fast), false},
		"nobody waits":                       {tree.Machine{Sent: 100}, slices.Concat(below(50), fast), false},
		"nobody else is known":               {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m1"}}, nil, false},
		"the others do not feed more":        {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m1"}}, below(90), false},
		"the child cannot take more":         {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m5"}}, append(fast, tree.Machine{ID: "m5", Received: 300}), false},
		"the child's own uplink is full":     {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m5"}}, append(fast, tree.Machine{ID: "m5", Uplink: 200, Received: 600}), false},
		"one of two children can":            {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m1", "m5"}}, slices.Concat(below(50), fast, []tree.Machine{{ID: "m5", Received: 100}}), true},
		"it is not known what the child can": {tree.Machine{Uplink: 100, Waiting: []tree.ID{"m6", "stranger"}}, fast, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := grove(t, 7)
			tc.of.ID = "m0"
			report(t, f, append(tc.more, tc.of)...)
			got := leaves(t, f, "image")
			if slow := slices.Equal(got, []tree.ID{"m0"}); slow != tc.slow || !slow && len(got) > 0 || f.Avoid("m0") != tc.slow {
				t.Errorf("leaves are %v, want m0 among them: %t", got, tc.slow)
			}
		})
	}
}

// Of a machine that sent more a while ago, three heartbeats in a row must say that it is slow.
func TestSlowOfLate(t *testing.T) {
	f := grove(t, 7)
	report(t, f, tree.Machine{ID: "m1", Sent: 1000}, tree.Machine{ID: "m2", Sent: 1000})
	for i, uplink := range []int64{100, 100, 900, 100, 0, 100, 100, 100} {
		report(t, f, tree.Machine{ID: "m0", Sent: 800, Uplink: uplink})
		leaves(t, f, "image")
		if got := leaves(t, f, "image"); len(got) != i/7 {
			t.Errorf("after %d heartbeats leaves are %v", i+1, got)
		}
	}
}

// Who was slow stays a leaf without being measured, also in trees that it enters later and when it was away, and is tried again after
// many heartbeats.
func TestSlowIsNotForgottenSoon(t *testing.T) {
	f := grove(t, 7)
	report(t, f, tree.Machine{ID: "m1", Uplink: 1000}, tree.Machine{ID: "m2", Uplink: 1000}, tree.Machine{ID: "m0", Uplink: 100})
	leaves(t, f, "image")
	for range 500 {
		report(t, f, tree.Machine{ID: "m0"})
	}
	for _, id := range []tree.ID{"m0", "m1", "m2", "m3"} {
		enter(t, f, "later", id)
	}
	if got := leaves(t, f, "later"); !slices.Equal(got, []tree.ID{"m0"}) {
		t.Errorf("leaves of a later tree: %v", got)
	}
	if _, err := f.Expel("m0"); err != nil || len(f.Images("m0")) > 0 {
		t.Errorf("in %v after it was expelled: %v", f.Images("m0"), err)
	}
	enter(t, f, "image", "m1000")
	if _, err := f.Join("image", "m0"); err != nil {
		t.Fatal(err)
	}
	if got := leaves(t, f, "image"); !slices.Equal(got, []tree.ID{"m0"}) {
		t.Errorf("leaves after it came back: %v", got)
	}
	for range 101 {
		report(t, f, tree.Machine{ID: "m0"})
	}
	if got := leaves(t, f, "image"); len(got) > 0 {
		t.Errorf("leaves after 601 heartbeats: %v", got)
	}
	if _, err := f.Expel("nobody"); err == nil {
		t.Error("expelled nobody")
	}
}

// An owner that takes a tree over keeps leaves as they were.
func TestAdoptedLeavesStayLeaves(t *testing.T) {
	was := grove(t, 7)
	report(t, was, tree.Machine{ID: "m1", Uplink: 1000}, tree.Machine{ID: "m0", Uplink: 100})
	leaves(t, was, "image")
	f := newForest(t, tree.ForestConfig{})
	if err := f.Adopt("image", was.Tree("image").Snapshot(), 2); err != nil {
		t.Fatal(err)
	}
	for i := range 7 {
		report(t, f, tree.Machine{ID: tree.ID(fmt.Sprint("m", i))})
	}
	if got := leaves(t, f, "image"); !slices.Equal(got, []tree.ID{"m0"}) {
		t.Errorf("leaves %v", got)
	}
}

// edgeOf returns somebody who is fed by somebody else than roots, and by whom.
func edgeOf(t *testing.T, f *tree.Forest) (child, parent, stranger tree.ID) {
	t.Helper()
	tr := f.Tree("image")
	feeds := func(parent, child tree.ID) bool {
		return slices.Contains(tr.Children(parent, 0), child) || slices.Contains(tr.Children(parent, 1), child)
	}
	members := tr.Snapshot().Members
	for _, m := range members {
		parent, _ = tr.Parent(m.ID, 0)
		for _, s := range members {
			if parent != tree.Registry && s.ID != parent && s.ID != m.ID && !feeds(parent, s.ID) {
				return m.ID, parent, s.ID
			}
		}
	}
	t.Fatal("no edge")
	return
}

// Who is cut off by one that it feeds becomes a leaf; others have no say, and nobody has two.
func TestCutOffByAChild(t *testing.T) {
	f := grove(t, 15)
	child, parent, stranger := edgeOf(t, f)
	if got := f.Complain("image", stranger, tree.Complaint{CutOff: []tree.ID{parent, "nobody", tree.Registry}}); len(got) > 0 {
		t.Errorf("%s has %v blamed", stranger, got)
	}
	if got := f.Complain("other", child, tree.Complaint{CutOff: []tree.ID{parent}}); len(got) > 0 {
		t.Errorf("%v are blamed in another tree", got)
	}
	if got := f.Complain("image", child, tree.Complaint{CutOff: []tree.ID{parent}}); !slices.Equal(got, []tree.ID{parent}) {
		t.Errorf("%v are blamed, want %s", got, parent)
	}
	if got := leaves(t, f, "image"); !slices.Equal(got, []tree.ID{parent}) {
		t.Errorf("leaves %v, want %s", got, parent)
	}
	for stripe := range 2 {
		if fed := f.Tree("image").Children(parent, stripe); len(fed) > 0 {
			t.Errorf("%s feeds %v", parent, fed)
		}
		next, _ := f.Tree("image").Parent(child, stripe)
		if got := f.Complain("image", child, tree.Complaint{CutOff: []tree.ID{next}}); len(got) > 0 {
			t.Errorf("%s has a second one blamed: %v", child, got)
		}
	}
	for range 601 {
		report(t, f, tree.Machine{ID: parent})
	}
	if got := leaves(t, f, "image"); len(got) > 0 {
		t.Errorf("leaves after 601 heartbeats: %v", got)
	}
}

// Who tries for four seconds in vain to reach its parent becomes a leaf, and its parent too.
func TestParentOutOfReach(t *testing.T) {
	start := time.Unix(1, 0)
	for name, tc := range map[string]struct {
		seconds []float64
		blamed  bool
	}{
		"often":             {[]float64{0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.1}, false},
		"for long":          {[]float64{0, 0.1, 0.5, 1, 2, 3, 4}, true},
		"not at every time": {[]float64{0, 2, 4}, true},
		"now and then":      {[]float64{0, 1, 6, 7, 12, 13, 18}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := grove(t, 15)
			child, parent, stranger := edgeOf(t, f)
			var blamed []tree.ID
			for _, s := range tc.seconds {
				at := start.Add(time.Duration(s * float64(time.Second)))
				blamed = append(blamed, f.Complain("image", child, tree.Complaint{At: at, Unreachable: []tree.ID{stranger, parent}})...)
				if got := f.Complain("image", stranger, tree.Complaint{At: at, Unreachable: []tree.ID{parent}}); len(got) > 0 {
					t.Errorf("%v are blamed by who is not fed", got)
				}
			}
			var want []tree.ID
			if tc.blamed {
				want = []tree.ID{parent, child}
			}
			if !slices.Equal(blamed, want) {
				t.Errorf("%v are blamed, want %v", blamed, want)
			}
			slices.Sort(want)
			if got := leaves(t, f, "image"); !slices.Equal(got, want) {
				t.Errorf("leaves %v, want %v", got, want)
			}
		})
	}
}

// Nobody who is slow is a backup where somebody else can be.
func TestBackupsAreNotSlow(t *testing.T) {
	f := grove(t, 20)
	report(t, f, tree.Machine{ID: "m1", Uplink: 1000}, tree.Machine{ID: "m0", Uplink: 100})
	leaves(t, f, "image")
	for i := range 20 {
		for stripe := range 2 {
			if id := tree.ID(fmt.Sprint("m", i)); slices.Contains(f.Tree("image").Backups(id, stripe), "m0") {
				t.Errorf("m0 is a backup of %s in stripe %d", id, stripe)
			}
		}
	}
}
