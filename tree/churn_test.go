package tree_test

import (
	"fmt"
	"testing"
)

// A million random operations on trees of all sizes break nothing: what each of them moved is looked at at once, everybody
// from time to time.
func TestMillionOperations(t *testing.T) {
	kinds := []struct{ stripes, about, operations int }{
		{1, 300, 200_000}, {2, 10, 250_000}, {2, 1000, 250_000}, {2, 10_000, 100_000}, {4, 25, 100_000}, {4, 500, 100_000},
	}
	for _, k := range kinds {
		t.Run(fmt.Sprintf("%d stripes, %d members", k.stripes, k.about), func(t *testing.T) {
			t.Parallel()
			c := newChurn(t, k.stripes, k.about, 1)
			for i := range k.operations {
				epoch := c.Epoch()
				if err := c.step(); err != nil {
					t.Fatalf("operation %d: %v", i, err)
				}
				if err := c.checkEdges(epoch); err != nil {
					t.Fatalf("operation %d: %v", i, err)
				}
				if i%(100*k.about) == 0 {
					if err := c.Check(); err != nil {
						t.Fatalf("operation %d: %v", i, err)
					}
				}
			}
			if err := c.Check(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// FaaSNet's published prototype loses nodes in 26 of 200 such runs.
func TestRandomInsertionsAndDeletionsLoseNobody(t *testing.T) {
	for seed := range uint64(200) {
		c := newChurn(t, []int{1, 2, 4}[seed%3], int(seed%50), seed)
		for range 100 {
			if err := c.step(); err != nil {
				t.Fatal(err)
			}
			if err := c.Check(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if c.Len() != len(c.members) {
				t.Fatalf("seed %d: %d of %d members", seed, c.Len(), len(c.members))
			}
		}
	}
}

func TestChurnKeepsIndexesTrue(t *testing.T) {
	for _, stripes := range []int{1, 2, 4} {
		c := newChurn(t, stripes, 60, 7)
		for range 1500 {
			if err := c.step(); err != nil {
				t.Fatal(err)
			}
			if err := c.CheckIndexes(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// BenchmarkOperations does the operations of TestMillionOperations, half of which are reports.
func BenchmarkOperations(b *testing.B) {
	c := newChurn(b, 2, 10_000, 1)
	for b.Loop() {
		if err := c.step(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkMembership does joins, leaves and failures only.
func BenchmarkMembership(b *testing.B) {
	c := newChurn(b, 2, 10_000, 1)
	changes, i := 0, 0
	for b.Loop() {
		how := c.join
		switch i++; i % 4 {
		case 1:
			how = func() error { return c.remove(c.Leave) }
		case 3:
			how = func() error { return c.remove(c.Fail) }
		}
		if err := how(); err != nil {
			b.Fatal(err)
		}
		changes += len(c.edges)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(changes)/float64(b.N), "changes/op")
}
