package tree_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

func BenchmarkOperations(b *testing.B) {
	const members = 10_000
	rng := rand.New(rand.NewPCG(1, 1))
	tr, err := tree.New(tree.Config{})
	if err != nil {
		b.Fatal(err)
	}
	names := make([]tree.ID, members+members/10)
	for i := range names {
		names[i] = tree.ID(fmt.Sprintf("machine-%05d", i))
	}
	join := func(id tree.ID) {
		if _, err := tr.Join(tree.Member{ID: id, Zone: string('a' + rune(rng.IntN(4)))}); err != nil {
			b.Fatal(err)
		}
	}
	in, out := names[:members:members], names[members:]
	for _, id := range in {
		join(id)
	}
	for _, held := range []bool{false} {
		_ = held
	}
	for b.Loop() {
		switch rng.IntN(3) {
		case 0:
			i, j := rng.IntN(len(in)), rng.IntN(len(out))
			if _, err := tr.Fail(in[i]); err != nil {
				b.Fatal(err)
			}
			in[i], out[j] = out[j], in[i]
			join(in[i])
		default:
			if err := tr.Report(in[rng.IntN(len(in))], []int{rng.IntN(1000), rng.IntN(1000)}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkMembership(b *testing.B) {
	const members = 10_000
	rng := rand.New(rand.NewPCG(1, 1))
	tr, err := tree.New(tree.Config{})
	if err != nil {
		b.Fatal(err)
	}
	names := make([]tree.ID, members+members/10)
	for i := range names {
		names[i] = tree.ID(fmt.Sprintf("machine-%05d", i))
	}
	n := 0
	join := func(id tree.ID) {
		c, err := tr.Join(tree.Member{ID: id, Zone: string('a' + rune(rng.IntN(4)))})
		if err != nil {
			b.Fatal(err)
		}
		n += len(c)
	}
	in, out := names[:members:members], names[members:]
	for _, id := range in {
		join(id)
	}
	n = 0
	for b.Loop() {
		i, j := rng.IntN(len(in)), rng.IntN(len(out))
		c, err := tr.Fail(in[i])
		if err != nil {
			b.Fatal(err)
		}
		n += len(c)
		in[i], out[j] = out[j], in[i]
		join(in[i])
	}
	b.ReportMetric(float64(n)/float64(b.N), "changes/2op")
}

func TestZ(t *testing.T) {
	for _, k := range []int{1, 2, 4} {
		rng := rand.New(rand.NewPCG(1, 1))
		tr, _ := tree.New(tree.Config{Stripes: k})
		ids := []tree.ID{}
		zone := map[tree.ID]string{}
		nx := 0
		join := func() {
			id := tree.ID(fmt.Sprintf("m%05d", nx))
			nx++
			ids = append(ids, id)
			zone[id] = fmt.Sprint(rng.IntN(4))
			tr.Join(tree.Member{ID: id, Zone: zone[id]})
		}
		rep := func() {
			var in, all, lin, lall float64
			for s := range k {
				for id := range tr.Walk(s) {
					p, _ := tr.Parent(id, s)
					if p == "" {
						continue
					}
					a, _ := tr.Attachments(id)
					same := 0.
					if zone[p] == zone[id] {
						same = 1
					}
					if a[s].Level < 0 {
						lin += same
						lall++
					} else {
						in += same
						all++
					}
				}
			}
			t.Logf("k=%d leaf %.3f of %.0f group %.3f of %.0f total %.3f h=%d", k, lin/lall, lall, in/all, all, (in+lin)/(all+lall), tr.Height(0))
		}
		for range 1000 {
			join()
		}
		rep()
		for range 20000 {
			i := rng.IntN(len(ids))
			tr.Leave(ids[i])
			ids[i] = ids[len(ids)-1]
			ids = ids[:len(ids)-1]
			join()
		}
		rep()
	}
}
