package tree_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/xylem-project/xylem/tree"
)

func newForest(t testing.TB, c tree.ForestConfig) *tree.Forest {
	t.Helper()
	f, err := tree.NewForest(c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func enter(t testing.TB, f *tree.Forest, image string, id tree.ID) {
	t.Helper()
	if f.Images(id) == nil {
		if err := f.SetMachine(tree.Machine{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Join(image, id); err != nil {
		t.Fatal(err)
	}
}

// settle takes steps until all roles are right, which must not take more than a few for each membership, and each of which
// changes few attachments.
func settle(f *tree.Forest, memberships int) error {
	_, err := countSteps(f, memberships)
	return err
}

func countSteps(f *tree.Forest, memberships int) (int, error) {
	for steps := range 4*memberships + 4 {
		image, changes, ok := f.Step()
		if !ok {
			return steps, f.Check()
		}
		perStripe := make([]int, f.Tree(image).Stripes())
		for _, c := range changes {
			perStripe[c.Stripe]++
		}
		if most := slices.Max(perStripe); most > 12*max(2, len(perStripe))+11 {
			return steps, fmt.Errorf("a step has %d changes in a stripe", most)
		}
	}
	return 0, fmt.Errorf("roles of %d memberships do not settle", memberships)
}

// Many functions on one VM: fifty images on one machine, each of them also on seven others.
func TestMachineOfManyTreesStaysInItsBudget(t *testing.T) {
	for _, first := range []bool{true, false} {
		f := newForest(t, tree.ForestConfig{Budget: 8})
		for image := range 50 {
			name := fmt.Sprint("image", image)
			if first {
				enter(t, f, name, "hub")
			}
			for i := range 7 {
				enter(t, f, name, tree.ID(fmt.Sprint(name, "-", i)))
			}
			if !first {
				enter(t, f, name, "hub")
			}
		}
		if err := settle(f, 400); err != nil {
			t.Fatal(err)
		}
		if load := f.Load("hub"); load > 8 {
			t.Errorf("hub joins first: %t, feeds %d children", first, load)
		}
	}
}

// Where all machines are in all trees there is no budget for all of that: it gives way, evenly.
func TestBudgetGivesWayEvenly(t *testing.T) {
	const images, machines = 20, 30
	f := newForest(t, tree.ForestConfig{Budget: 10})
	for image := range images {
		for i := range machines {
			enter(t, f, fmt.Sprint("image", image), tree.ID(fmt.Sprint("m", (i+7*image)%machines)))
		}
	}
	if err := settle(f, images*machines); err != nil {
		t.Fatal(err)
	}
	sum, most := 0, 0
	for i := range machines {
		load := f.Load(tree.ID(fmt.Sprint("m", i)))
		sum, most = sum+load, max(most, load)
	}
	if want := images * 2 * (machines - 1); sum != want {
		t.Errorf("%d children, want %d", sum, want)
	}
	if mean := float64(sum) / machines; float64(most) > 1.5*mean {
		t.Errorf("a machine feeds %d children, the mean is %.1f", most, mean)
	}
}

// When nobody has budget left, roles stay with as many as the tree needs, and no step takes them away.
func TestRolesStayWhereNobodyHasBudget(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	for i := range 8 {
		enter(t, f, "image", tree.ID(fmt.Sprint("m", i)))
	}
	for i := range 8 {
		if err := f.SetMachine(tree.Machine{ID: tree.ID(fmt.Sprint("m", i)), Budget: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := settle(f, 8); err != nil {
		t.Fatal(err)
	}
	ready := 0
	for _, m := range f.Tree("image").Snapshot().Members {
		if m.Role == tree.RoleAny {
			ready++
		}
	}
	if ready != 6 { // seven children in each stripe, three at most for each of three members
		t.Errorf("%d members may be interior", ready)
	}
}

// Of several machines that would rather be leaves, the one that feeds fewest children elsewhere is drafted.
func TestLeastBurdenedIsDrafted(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	for id, trees := range map[tree.ID]int{"three": 3, "four": 4, "two": 2} {
		for i := range trees { // each with one other machine, which id feeds in one stripe
			image := fmt.Sprint(id, i)
			enter(t, f, image, id)
			enter(t, f, image, tree.ID(image))
		}
		if err := f.SetMachine(tree.Machine{ID: id, Budget: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []tree.ID{"three", "four", "two"} {
		if _, err := f.Join("image", id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Leave("image", "three"); err != nil {
		t.Fatal(err)
	}
	if root, _ := f.Tree("image").Root(0); root != "two" {
		t.Errorf("%s was drafted", root)
	}
}

// Each machine counts once for the mean uplink, however often it reports.
func TestHeartbeatsCountOnce(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	for _, m := range []struct {
		id                 tree.ID
		uplink, heartbeats int64
	}{{"a", 1000, 1}, {"b", 1000, 1}, {"c", 1000, 1}, {"slow", 100, 50}} {
		enter(t, f, "image", m.id)
		for range m.heartbeats {
			if err := f.SetMachine(tree.Machine{ID: m.id, Uplink: m.uplink}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := settle(f, 4); err != nil {
		t.Fatal(err)
	}
	if m, _ := f.Tree("image").Member("slow"); m.Role != tree.RoleLeaf {
		t.Errorf("a slow machine is %v", m.Role)
	}
}

// A tree of an image whose members have all left goes on with the epochs of the former one.
func TestEpochsOutliveATree(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	enter(t, f, "image", "a")
	last := f.Tree("image").Epoch()
	if _, err := f.Leave("image", "a"); err != nil || f.Tree("image") != nil {
		t.Fatal(f.Tree("image"), err)
	}
	changes, err := f.Join("image", "a")
	if err != nil || changes[0].Epoch.Compare(last) <= 0 {
		t.Errorf("%+v after epoch %v, %v", changes, last, err)
	}
}

func TestAdoptedTreesCount(t *testing.T) {
	was := newForest(t, tree.ForestConfig{})
	for i := range 9 {
		enter(t, was, "image", tree.ID(fmt.Sprint("m", i)))
	}
	f := newForest(t, tree.ForestConfig{})
	enter(t, f, "other", "m3")
	if err := f.Adopt("image", was.Tree("image").Snapshot(), 1); err != nil {
		t.Fatal(err)
	}
	if err := f.Check(); err != nil {
		t.Error(err)
	}
	if got, want := f.Load("m3"), was.Load("m3"); got != want {
		t.Errorf("m3 feeds %d children, fed %d", got, want)
	}
	if got := f.Images("m3"); !slices.Equal(got, []string{"image", "other"}) {
		t.Errorf("m3 is in the trees of %v", got)
	}
	if err := f.Adopt("image", was.Tree("image").Snapshot(), 2); !errors.Is(err, tree.ErrExists) {
		t.Errorf("adopted twice: %v", err)
	}
	if err := f.Adopt("third", tree.Snapshot{Stripes: 4}, 2); !errors.Is(err, tree.ErrInvalid) {
		t.Errorf("of four stripes: %v", err)
	}
	if err := f.Adopt("third", tree.Snapshot{Stripes: 2, Epoch: tree.Epoch{Term: 5}}, 2); !errors.Is(err, tree.ErrStale) {
		t.Errorf("of a later term: %v", err)
	}
}

func TestForestRefusesNonsense(t *testing.T) {
	for _, c := range []tree.ForestConfig{{Stripes: 3}, {Budget: -1}} {
		if _, err := tree.NewForest(c); !errors.Is(err, tree.ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	f := newForest(t, tree.ForestConfig{})
	for _, m := range []tree.Machine{{}, {ID: "m", Budget: -1}, {ID: "m", Uplink: -1}, {ID: "m", Elsewhere: -1}, {ID: "m", Uplink: 1 << 41}} {
		if err := f.SetMachine(m); !errors.Is(err, tree.ErrInvalid) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	enter(t, f, "image", "m")
	_, twice := f.Join("image", "m")
	_, unknown := f.Join("image", "x")
	_, other := f.Leave("other", "m")
	_, failed := f.Fail("x")
	for err, want := range map[error]error{twice: tree.ErrExists, unknown: tree.ErrUnknown, other: tree.ErrUnknown, failed: tree.ErrUnknown} {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
	if f.Load("x") != 0 || f.Images("x") != nil {
		t.Error("x feeds somebody")
	}
}

// Whatever machines do: trees are sound, sums are right, and roles settle as the machines deserve.
func TestAnyHistoryKeepsTheForestSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWood(t)
		for range rapid.IntRange(0, 40).Draw(t, "joins") {
			w.join(t)
		}
		t.Repeat(map[string]func(*rapid.T){
			"machine":  w.machine,
			"join":     w.join,
			"join too": w.join,
			"leave":    w.leave,
			"fail":     w.fail,
			"":         w.check,
		})
	})
}

// wood is a forest that rapid plays with.
type wood struct {
	forest   *tree.Forest
	machines map[tree.ID]tree.Machine
}

const woodBudget = 6

var woodImages = []string{"p", "q", "r", "s"}

func newWood(t *rapid.T) *wood {
	f, err := tree.NewForest(tree.ForestConfig{Stripes: rapid.SampledFrom([]int{1, 2, 4}).Draw(t, "stripes"), Budget: woodBudget})
	if err != nil {
		t.Fatal(err)
	}
	w := &wood{forest: f, machines: map[tree.ID]tree.Machine{}}
	for i := range 12 {
		w.set(t, tree.Machine{ID: tree.ID(fmt.Sprint("m", i))})
	}
	return w
}

func (w *wood) set(t *rapid.T, m tree.Machine) {
	w.machines[m.ID] = m
	if err := w.forest.SetMachine(m); err != nil {
		t.Fatal(err)
	}
}

func (w *wood) draw(t *rapid.T) (string, tree.ID) {
	return rapid.SampledFrom(woodImages).Draw(t, "image"), tree.ID(fmt.Sprint("m", rapid.IntRange(0, 11).Draw(t, "machine")))
}

func (w *wood) machine(t *rapid.T) {
	_, id := w.draw(t)
	w.set(t, tree.Machine{ID: id, Uplink: rapid.SampledFrom([]int64{0, 10, 1000}).Draw(t, "uplink"),
		Elsewhere: rapid.IntRange(0, woodBudget).Draw(t, "elsewhere"), Draining: rapid.IntRange(0, 9).Draw(t, "draining") == 0})
}

func (w *wood) join(t *rapid.T) {
	image, id := w.draw(t)
	if _, known := w.machines[id]; !known {
		w.set(t, tree.Machine{ID: id})
	}
	if _, err := w.forest.Join(image, id); err != nil && !errors.Is(err, tree.ErrExists) {
		t.Fatal(err)
	}
}

func (w *wood) leave(t *rapid.T) {
	image, id := w.draw(t)
	if _, err := w.forest.Leave(image, id); err != nil && !errors.Is(err, tree.ErrUnknown) {
		t.Fatal(err)
	}
}

func (w *wood) fail(t *rapid.T) {
	_, id := w.draw(t)
	delete(w.machines, id)
	if _, err := w.forest.Fail(id); err != nil && !errors.Is(err, tree.ErrUnknown) {
		t.Fatal(err)
	}
}

func (w *wood) check(t *rapid.T) {
	if err := w.forest.Check(); err != nil {
		t.Fatal(err)
	}
	w.rest(t)
	for id, m := range w.machines {
		ready := false
		for _, image := range w.forest.Images(id) {
			member, ok := w.forest.Tree(image).Member(id)
			if !ok || m.Draining && member.Role != tree.RoleLeaf {
				t.Fatalf("%+v is %v in the tree of %s", m, member.Role, image)
			}
			ready = ready || member.Role == tree.RoleAny
		}
		able := !m.Draining && m.Uplink == 1000 && m.Elsewhere+2*w.arity() <= woodBudget
		if able && !ready && w.forest.Load(id) == 0 && len(w.forest.Images(id)) > 0 {
			t.Fatalf("%+v may be interior nowhere", m)
		}
	}
}

// rest lets machines report until nothing changes any more: a step may make room in the budget of a machine whose turn is over.
func (w *wood) rest(t *rapid.T) {
	for range 5 {
		for _, id := range slices.Sorted(maps.Keys(w.machines)) {
			w.set(t, w.machines[id])
		}
		steps, err := countSteps(w.forest, len(w.machines)*len(woodImages))
		if err != nil {
			t.Fatal(err)
		}
		if steps == 0 {
			return
		}
	}
	t.Fatal("roles change with every heartbeat")
}

func (w *wood) arity() int {
	for _, image := range woodImages {
		if tr := w.forest.Tree(image); tr != nil {
			return max(2, tr.Stripes())
		}
	}
	return 0
}

// What an owner gives up counts for its machines no more; the tree goes on elsewhere, and may come back with a new term.
func TestDroppedTreesDoNotCount(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	for _, id := range []tree.ID{"a", "b", "c", "d"} {
		enter(t, f, "lost", id)
		enter(t, f, "kept", id)
	}
	before := f.Load("a")
	snap := f.Tree("lost").Snapshot()
	f.Drop("lost")
	f.Drop("lost")
	if err := f.Check(); err != nil {
		t.Error(err)
	}
	if f.Tree("lost") != nil || !slices.Equal(f.Images("a"), []string{"kept"}) {
		t.Errorf("a is in %v", f.Images("a"))
	}
	if err := f.Adopt("lost", snap, 7); err != nil {
		t.Fatal(err)
	}
	if f.Load("a") != before {
		t.Errorf("a feeds %d, before %d", f.Load("a"), before)
	}
	if err := f.Check(); err != nil {
		t.Error(err)
	}
}

// Whoever stores members one by one hears whose role was corrected, also when no attachment changed.
func TestCorrectNamesTheMember(t *testing.T) {
	f := newForest(t, tree.ForestConfig{})
	for _, id := range []tree.ID{"a", "b", "c", "d", "e"} {
		enter(t, f, "image", id)
	}
	if err := f.SetMachine(tree.Machine{ID: "c", Draining: true}); err != nil {
		t.Fatal(err)
	}
	image, id, _, ok := f.Correct()
	if m, _ := f.Tree("image").Member("c"); !ok || image != "image" || id != "c" || m.Role != tree.RoleLeaf {
		t.Errorf("%s %s %t, c is %v", image, id, ok, m.Role)
	}
	if _, _, _, ok := f.Correct(); ok {
		t.Error("there is more to correct")
	}
}
