package tree_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

func newTree(t testing.TB, stripes int) *tree.Tree {
	t.Helper()
	tr, err := tree.New(tree.Config{Stripes: stripes})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// grow joins n members named m0, m1, ….
func grow(t testing.TB, tr *tree.Tree, n int) {
	t.Helper()
	for i := range n {
		if _, err := tr.Join(tree.Member{ID: tree.ID(fmt.Sprint("m", i))}); err != nil {
			t.Fatal(err)
		}
	}
}

// mirror is what the world knows of a tree that hears of its changes only.
type mirror map[tree.ID][]tree.Attachment

// apply takes the changes of an event over and fails if they are not ones that their receivers would accept.
func (m mirror) apply(tr *tree.Tree, changes []tree.Change, failed tree.ID) error {
	perStripe := make([]int, tr.Stripes())
	for _, c := range changes {
		if m[c.Child] == nil {
			m[c.Child] = make([]tree.Attachment, tr.Stripes())
		}
		was := m[c.Child][c.Stripe]
		now, err := was.Accept(c.Attachment)
		if err != nil {
			return err
		}
		if want := was.Parent; c.Old != want && !(want == failed && c.Old == "") {
			return fmt.Errorf("%+v: old parent was %q", c, want)
		}
		if was.Parent == now.Parent && was.Level == now.Level && was.Epoch.Seq > 0 {
			return fmt.Errorf("%+v changes nothing", c)
		}
		m[c.Child][c.Stripe] = now
		perStripe[c.Stripe]++
	}
	if most := slices.Max(perStripe); most > mostChanges(tr) {
		return fmt.Errorf("%d changes in a stripe", most)
	}
	return nil
}

// mostChanges is how many members an event may move in a stripe: as doc.go says for members that all have RoleAny; for others
// drafted ones come in addition, and leaves that spread.
func mostChanges(tr *tree.Tree) int {
	arity, most := max(2, tr.Stripes()), 2
	if tr.Stripes() == 4 {
		most = 5
	}
	for id := range tr.Walk(0) {
		if m, _ := tr.Member(id); m.Role != tree.RoleAny {
			return 12*arity + 11
		}
	}
	return 5*most + 5
}

// same tells how the tree differs from what its changes said.
func (m mirror) same(tr *tree.Tree) error {
	if len(m) != tr.Len() {
		return fmt.Errorf("changes tell of %d members of %d", len(m), tr.Len())
	}
	for id, want := range m {
		if got, err := tr.Attachments(id); err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("%s is attached by %+v, changes told %+v (%v)", id, got, want, err)
		}
	}
	return nil
}

// churn does random operations on a tree of about the given number of members.
type churn struct {
	*tree.Tree
	rng     *rand.Rand
	members []tree.ID
	about   int
	joined  int
	edges   []tree.Change // of the last operation
	lost    tree.ID       // by the last operation
}

func newChurn(t testing.TB, stripes, about int, seed uint64) *churn {
	c := &churn{Tree: newTree(t, stripes), rng: rand.New(rand.NewPCG(seed, uint64(stripes))), about: max(about, 1)}
	for len(c.members) < c.about {
		if err := c.join(); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// step does one operation: half of them reports, the others joins, leaves and failures.
func (c *churn) step() error {
	c.edges, c.lost = nil, ""
	switch n := c.rng.IntN(4); {
	case n >= 2 && len(c.members) > 0:
		return c.report()
	case len(c.members) == 0 || c.rng.IntN(2*c.about) >= len(c.members):
		return c.join()
	case n == 0:
		return c.remove(c.Leave)
	default:
		return c.remove(c.Fail)
	}
}

func (c *churn) join() (err error) {
	m := tree.Member{ID: tree.ID(fmt.Sprint("m", c.joined)), Zone: zoneNames[c.rng.IntN(len(zoneNames))]}
	c.joined++
	c.members = append(c.members, m.ID)
	c.edges, err = c.Join(m)
	return err
}

func (c *churn) remove(how func(tree.ID) ([]tree.Change, error)) (err error) {
	i, last := c.rng.IntN(len(c.members)), len(c.members)-1
	c.lost = c.members[i]
	c.members[i] = c.members[last]
	c.members = c.members[:last]
	c.edges, err = how(c.lost)
	return err
}

func (c *churn) report() error {
	held := make([]int, c.Stripes())
	for i := range held {
		held[i] = c.rng.IntN(1000)
	}
	return c.Report(c.members[c.rng.IntN(len(c.members))], held)
}

// checkEdges looks at the members that the last operation moved, and at the way from them to the registry.
func (c *churn) checkEdges(epoch tree.Epoch) error {
	for _, e := range c.edges {
		if e.Epoch.Compare(epoch) <= 0 {
			return fmt.Errorf("epoch %v follows %v", e.Epoch, epoch)
		}
		epoch = e.Epoch
		if got, ok := c.Parent(e.Child, e.Stripe); !ok || got != e.Parent {
			return fmt.Errorf("%s has parent %q in stripe %d, told %q", e.Child, got, e.Stripe, e.Parent)
		}
		if slices.Contains(e.Backups, c.lost) || slices.Contains(e.Backups, e.Child) {
			return fmt.Errorf("%s has backups %v after %q was lost", e.Child, e.Backups, c.lost)
		}
		if err := c.checkInterior(e.Parent); err != nil {
			return err
		}
		if err := c.climb(e.Child, e.Stripe); err != nil {
			return err
		}
	}
	return nil
}

// climb goes from a member up to the registry.
func (c *churn) climb(id tree.ID, stripe int) error {
	limit := 1
	for reach := 1; reach < c.Len(); reach *= max(2, c.Stripes()) {
		limit++
	}
	for at, depth := id, 0; at != tree.Registry; depth++ {
		if depth > limit {
			return fmt.Errorf("%s is deeper than %d in stripe %d", id, limit, stripe)
		}
		parent, ok := c.Parent(at, stripe)
		if !ok {
			return fmt.Errorf("%s has %q above it in stripe %d", id, at, stripe)
		}
		at = parent
	}
	return nil
}

// checkInterior: a machine has children in one stripe only, and not more than arity, or one more with four stripes.
func (c *churn) checkInterior(id tree.ID) error {
	if id == tree.Registry || c.Len() < 4*c.Stripes() {
		return nil // Check knows the limits of small trees
	}
	stripes, limit := 0, max(2, c.Stripes())+c.Stripes()/4
	for s := range c.Stripes() {
		n := len(c.Children(id, s))
		if n > limit {
			return fmt.Errorf("%s has %d children in stripe %d", id, n, s)
		}
		stripes += min(n, 1)
	}
	if stripes > 1 {
		return fmt.Errorf("%s is interior in %d stripes", id, stripes)
	}
	return nil
}

var zoneNames = []string{"a", "b", "c", "d"}
