package tree_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

// The limits of doc.go for members that all have RoleAny, at every size.
func TestDegreesOfEverySize(t *testing.T) {
	for _, stripes := range []int{1, 2, 4} {
		tr := newTree(t, stripes)
		for n := 1; n <= 100; n++ {
			if _, err := tr.Join(tree.Member{ID: tree.ID(fmt.Sprint("m", n))}); err != nil {
				t.Fatal(err)
			}
			if err := tr.Check(); err != nil {
				t.Fatalf("%d stripes, %d members: %v", stripes, n, err)
			}
			most, interior := burdens(tr)
			if want := degreeLimit(stripes, n); most > want {
				t.Errorf("%d stripes, %d members: somebody has %d children in a stripe, limit %d", stripes, n, most, want)
			}
			if want := max(1, (stripes+n-1)/n); interior > want {
				t.Errorf("%d stripes, %d members: somebody is interior in %d stripes, limit %d", stripes, n, interior, want)
			}
		}
	}
}

// degreeLimit: two stripes fit exactly. Four need an edge more than arity*n if n mod 4 is 2 or 3, so somebody has one child
// more, and with seven members, where one of them makes a group, two.
func degreeLimit(stripes, n int) int {
	switch {
	case stripes < 4:
		return 2
	case n == 7:
		return 6
	case n%4 >= 2:
		return 5
	default:
		return 4
	}
}

// burdens returns the most children of a member in a stripe, and the most stripes in which a member has children.
func burdens(tr *tree.Tree) (children, interior int) {
	for id := range tr.Walk(0) {
		stripes := 0
		for s := range tr.Stripes() {
			n := len(tr.Children(id, s))
			children = max(children, n)
			stripes += min(n, 1)
		}
		interior = max(interior, stripes)
	}
	return children, interior
}

// A slow machine feeds nobody, whenever it joins.
func TestSlowMemberIsALeaf(t *testing.T) {
	for _, stripes := range []int{1, 2, 4} {
		for n := 2; n <= 24; n++ {
			for at := range n {
				tr := newTree(t, stripes)
				for i := range n {
					m := tree.Member{ID: tree.ID(fmt.Sprint("m", i))}
					if i == at {
						m.Role = tree.RoleLeaf
					}
					if _, err := tr.Join(m); err != nil {
						t.Fatal(err)
					}
				}
				slow := tree.ID(fmt.Sprint("m", at))
				for s := range stripes {
					if fed := tr.Children(slow, s); len(fed) > 0 {
						t.Fatalf("%d stripes, %d members, slow is number %d: it feeds %v", stripes, n, at, fed)
					}
				}
			}
		}
	}
}

// How many may stay leaves: as long as the others feed arity+1 (RoleSpare) or 2*arity (RoleLeaf) children at most.
func TestReluctantMembersAreLeavesWhileCapacityLasts(t *testing.T) {
	for _, test := range []struct {
		stripes, members int
		role             tree.Role
		leaves           int
	}{
		{1, 31, tree.RoleSpare, 21}, {1, 31, tree.RoleLeaf, 23},
		{2, 31, tree.RoleSpare, 11}, {2, 31, tree.RoleLeaf, 15},
		{4, 31, tree.RoleSpare, 7}, {4, 31, tree.RoleLeaf, 15},
	} {
		tr := newTree(t, test.stripes)
		grow(t, tr, test.members)
		for i := range test.members {
			if _, err := tr.SetRole(tree.ID(fmt.Sprint("m", i)), test.role); err != nil {
				t.Fatal(err)
			}
			if err := tr.Check(); err != nil {
				t.Fatalf("%+v, %d of them reluctant: %v", test, i+1, err)
			}
			drafted := 0
			for j := range i + 1 {
				drafted += grouped(t, tr, tree.ID(fmt.Sprint("m", j)))
			}
			if want := max(0, i+1-test.leaves); drafted != want {
				t.Fatalf("%+v: of %d reluctant members %d may be interior, want %d", test, i+1, drafted, want)
			}
		}
	}
}

// grouped is 1 if the member may be interior in a stripe.
func grouped(t *testing.T, tr *tree.Tree, id tree.ID) int {
	t.Helper()
	list, err := tr.Attachments(id)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Level != tree.Leaf {
			return 1
		}
	}
	return 0
}

// Newcomers hold nothing; when inner members fail, none of them gets far up.
func TestMembersWithDataMoveUp(t *testing.T) {
	for _, stripes := range []int{1, 2, 4} {
		tr := newTree(t, stripes)
		grow(t, tr, 1000)
		full := make([]int, stripes)
		for i := range full {
			full[i] = 100
		}
		for i := range 1000 {
			if err := tr.Report(tree.ID(fmt.Sprint("m", i)), full); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 300 {
			if _, err := tr.Join(tree.Member{ID: tree.ID(fmt.Sprint("new", i))}); err != nil {
				t.Fatal(err)
			}
		}
		for range 100 {
			for s := range stripes {
				root, _ := tr.Root(s)
				for _, id := range []tree.ID{tr.Children(root, s)[0], root} {
					if _, err := tr.Fail(id); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for s := range stripes {
			bottom := deepestLevel(t, tr, s)
			for id, depth := range tr.Walk(s) {
				if strings.HasPrefix(string(id), "new") && len(tr.Children(id, s)) > 0 && depth < bottom-1 {
					t.Errorf("%s of no data has depth %d of %d in stripe %d", id, depth, bottom, s)
				}
			}
		}
	}
}

func deepestLevel(t *testing.T, tr *tree.Tree, stripe int) int {
	t.Helper()
	bottom := 0
	for id := range tr.Walk(stripe) {
		list, err := tr.Attachments(id)
		if err != nil {
			t.Fatal(err)
		}
		bottom = max(bottom, list[stripe].Level)
	}
	return bottom
}

// Shares of the edges that stay in their zone, of four zones of equal size, when 1,000 members have joined in random order and when
// after that 5,000 times one has left and another one joined. docs/decisions/places-in-a-tree.md has what this test logs.
func TestEdgesStayInTheirZone(t *testing.T) {
	for _, test := range []struct {
		stripes   int
		leaf, all zoneShares // at least
	}{
		{1, zoneShares{}, zoneShares{0.88, 0.65}},
		{2, zoneShares{0.94, 0.88}, zoneShares{0.90, 0.78}},
		{4, zoneShares{0.96, 0.88}, zoneShares{0.95, 0.84}},
	} {
		told := zonesOf(t, test.stripes, func(zone string) string { return zone })
		t.Logf("%d stripes: %.3f", test.stripes, told)
		if told.leaf.less(test.leaf) || told.all.less(test.all) {
			t.Errorf("%d stripes: %.3f, want %v of the leaf edges and %v of all", test.stripes, told, test.leaf, test.all)
		}
		blind := zonesOf(t, test.stripes, func(string) string { return "" })
		if limit := (zoneShares{0.35, 0.35}); limit.less(blind.leaf) || limit.less(blind.all) {
			t.Errorf("%d stripes: %.3f although the tree does not know the zones", test.stripes, blind)
		}
	}
}

// zoneShares are shares of edges inside a zone.
type zoneShares struct{ joined, churned float64 }

func (z zoneShares) less(than zoneShares) bool {
	return z.joined < than.joined || z.churned < than.churned
}

type zoneFigures struct {
	group, leaf, all zoneShares // by the kind of child
	changes          float64    // per join or leave, after all have joined
}

// zonesOf tells the tree what label says of a member's zone.
func zonesOf(t *testing.T, stripes int, label func(string) string) (f zoneFigures) {
	const members, churn = 1000, 5000
	rng := rand.New(rand.NewPCG(1, 2))
	tr := newTree(t, stripes)
	zones := map[tree.ID]string{}
	var present []tree.ID
	changes := 0
	for i := range members + churn {
		if i == members {
			f.group.joined, f.leaf.joined, f.all.joined = sharesInZone(tr, zones)
			changes = 0
		}
		if i >= members {
			lost := rng.IntN(len(present))
			gone, err := tr.Leave(present[lost])
			if err != nil {
				t.Fatal(err)
			}
			changes += len(gone)
			present = slices.Delete(present, lost, lost+1)
		}
		id := tree.ID(fmt.Sprint("m", i))
		zones[id] = zoneNames[rng.IntN(len(zoneNames))]
		present = append(present, id)
		come, err := tr.Join(tree.Member{ID: id, Zone: label(zones[id])})
		if err != nil {
			t.Fatal(err)
		}
		changes += len(come)
	}
	f.group.churned, f.leaf.churned, f.all.churned = sharesInZone(tr, zones)
	f.changes = float64(changes) / (2 * churn)
	return f
}

// sharesInZone returns the shares of edges inside a zone, by the kind of child.
func sharesInZone(tr *tree.Tree, zones map[tree.ID]string) (group, leaf, all float64) {
	var edges, inZone [2]float64 // to members of the group, to leaves
	for s := range tr.Stripes() {
		for id := range tr.Walk(s) {
			list, _ := tr.Attachments(id)
			if list[s].Parent == tree.Registry {
				continue
			}
			kind := 0
			if list[s].Level == tree.Leaf {
				kind = 1
			}
			edges[kind]++
			if zones[id] == zones[list[s].Parent] {
				inZone[kind]++
			}
		}
	}
	return inZone[0] / edges[0], inZone[1] / max(edges[1], 1), (inZone[0] + inZone[1]) / (edges[0] + edges[1])
}

// A member of the parent's zone moves up only if it holds as much as the fullest.
func TestDataMattersMoreThanZone(t *testing.T) {
	tr := newTree(t, 1)
	for i := range 15 {
		if _, err := tr.Join(tree.Member{ID: tree.ID(fmt.Sprint("m", i)), Zone: zoneNames[i%2]}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 15 {
		if err := tr.Report(tree.ID(fmt.Sprint("m", i)), []int{100 + i%2}); err != nil {
			t.Fatal(err)
		}
	}
	root, _ := tr.Root(0)
	lost := tr.Children(root, 0)[0]
	changes, err := tr.Fail(lost)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if m, _ := tr.Member(c.Child); c.Parent == root && m.Zone != zoneNames[1] {
			t.Errorf("%s of zone %s replaces %s although others hold more", m.ID, m.Zone, lost)
		}
	}
}

// Zones come and go; their number in use bounds what is kept about them.
func TestZonesAreForgotten(t *testing.T) {
	tr := newTree(t, 2)
	for i := range 2000 {
		if _, err := tr.Join(tree.Member{ID: tree.ID(fmt.Sprint("m", i)), Zone: fmt.Sprint("z", i)}); err != nil {
			t.Fatal(err)
		}
		if i >= 10 {
			if _, err := tr.Fail(tree.ID(fmt.Sprint("m", i-10))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := tr.ZonesKept(); n > 12 {
		t.Errorf("%d zones kept for 10 members", n)
	}
	if err := tr.CheckIndexes(); err != nil {
		t.Error(err)
	}
}
