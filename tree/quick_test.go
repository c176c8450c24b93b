package tree_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/xylem-project/xylem/tree"
)

func TestQuick(t *testing.T) {
	for _, k := range []int{1, 2, 4} {
		for _, mode := range []int{0, 1, 2} {
			worst := map[string]int{}
			sum, cnt := 0, 0
			for seed := range uint64(30) {
				rng := rand.New(rand.NewPCG(seed, 1))
				tr, _ := tree.New(tree.Config{Stripes: k})
				var ids []tree.ID
				next := 0
				target := rng.IntN(200)
				for op := range 1500 {
					if op%300 == 0 {
						target = rng.IntN(200)
						if rng.IntN(3) == 0 {
							target = rng.IntN(8)
						}
					}
					var ch []tree.Change
					var err error
					name := ""
					role := func() tree.Role {
						if mode == 0 {
							return 0
						}
						if mode == 1 && rng.IntN(4) > 0 {
							return 0
						}
						return tree.Role(rng.IntN(3))
					}
					switch r := rng.IntN(100); {
					case len(ids) == 0 || r < 50 && len(ids) < target+5 || r < 20:
						name = "join"
						id := tree.ID(fmt.Sprint("m", next))
						next++
						ids = append(ids, id)
						ch, err = tr.Join(tree.Member{ID: id, Zone: fmt.Sprint("z", rng.IntN(4)), Role: role()})
					case r < 80:
						name = "leave"
						i := rng.IntN(len(ids))
						id := ids[i]
						ids[i] = ids[len(ids)-1]
						ids = ids[:len(ids)-1]
						if r%2 == 0 {
							ch, err = tr.Leave(id)
						} else {
							ch, err = tr.Fail(id)
						}
					case r < 90 && mode > 0:
						name = "role"
						ch, err = tr.SetRole(ids[rng.IntN(len(ids))], role())
					default:
						held := make([]int, k)
						for i := range held {
							held[i] = rng.IntN(100)
						}
						err = tr.Report(ids[rng.IntN(len(ids))], held)
					}
					if err != nil {
						t.Fatal(err)
					}
					if err := tr.Check(); err != nil {
						t.Fatal(k, mode, seed, op, name, len(ids), err)
					}
					if err := tr.CheckIndexes(); err != nil {
						t.Fatal(k, mode, seed, op, name, err)
					}
					per := map[int]int{}
					for _, c := range ch {
						per[c.Stripe]++
						worst[name] = max(worst[name], per[c.Stripe])
					}
					if name != "" {
						sum += len(ch)
						cnt++
					}
				}
			}
			t.Log(k, mode, worst, float64(sum)/float64(cnt))
		}
	}
}
