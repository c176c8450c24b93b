package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/tree"
)

const (
	treeMembers    = 10_000
	treeOperations = 1_000_000
)

// operations does a million random operations on a tree of ten thousand members, half of them reports, and checks all
// invariants from time to time.
func (b *bench) operations(ctx context.Context) error {
	t, err := tree.New(tree.Config{Stripes: 2})
	if err != nil {
		return err
	}
	c := churn{Tree: t, rng: rand.New(rand.NewPCG(1, 2))}
	for range treeMembers {
		if err := c.join(); err != nil {
			return err
		}
	}
	violations, spent := 0, time.Duration(0)
	for done := 0; done < treeOperations && ctx.Err() == nil; done += treeMembers {
		start := time.Now()
		for range treeMembers {
			if err := c.step(); err != nil {
				return err
			}
		}
		spent += time.Since(start)
		if err := c.Check(); err != nil {
			fmt.Println("  ", err)
			violations++
		}
	}
	b.Add(figures.Summary("tree_ops_per_second", "1/s", []float64{treeOperations / spent.Seconds()}),
		figures.Summary("tree_violations", "count", []float64{float64(violations)}))
	return ctx.Err()
}

// churn is a tree whose members come and go.
type churn struct {
	*tree.Tree
	rng     *rand.Rand
	members []tree.ID
	joined  int
}

func (c *churn) join() error {
	id := tree.ID(fmt.Sprint("m", c.joined))
	c.joined++
	c.members = append(c.members, id)
	_, err := c.Join(tree.Member{ID: id, Zone: fmt.Sprint("zone", c.rng.IntN(4))})
	return err
}

func (c *churn) step() (err error) {
	i := c.rng.IntN(len(c.members))
	switch n := c.rng.IntN(4); {
	case n >= 2:
		return c.Report(c.members[i], []int{c.rng.IntN(1000), c.rng.IntN(1000)})
	case c.rng.IntN(2*treeMembers) >= len(c.members):
		return c.join()
	case n == 0:
		_, err = c.Leave(c.members[i])
	default:
		_, err = c.Fail(c.members[i])
	}
	last := len(c.members) - 1
	c.members[i] = c.members[last]
	c.members = c.members[:last]
	return err
}
