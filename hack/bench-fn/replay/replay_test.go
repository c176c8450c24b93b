package replay

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/scheduler/placement"
)

func TestReadGraph(t *testing.T) {
	g, err := ReadGraph(strings.NewReader("1 0\n2 0\n"))
	if err != nil || fmt.Sprint(g) != "[[1 2] [0] [0]]" {
		t.Errorf("got %v, %v", g, err)
	}
	for _, text := range []string{"", "1\n", "1 2 3\n", "1 x\n", "-1 0\n", "99999999999 0\n", "4000000 0\n", strings.Repeat("1", 1<<17)} {
		if _, err := ReadGraph(strings.NewReader(text)); err == nil {
			t.Errorf("%.20q is a graph", text)
		}
	}
	if _, err := ReadGraph(strings.NewReader("0 1\n1\n")); !errors.Is(err, ErrGraph) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
}

func TestSyntheticGraphHasItsSize(t *testing.T) {
	g := Synthetic(962, 18812)
	ends, most := 0, 0
	for i, friends := range g {
		ends += len(friends)
		most = max(most, len(friends))
		for _, f := range friends {
			if !slices.Contains(g[f], int32(i)) || int(f) == i {
				t.Fatalf("%d is a friend of %d", f, i)
			}
		}
	}
	if len(g) != 962 || ends != 2*18812 {
		t.Errorf("%d people, %d friendships", len(g), ends/2)
	}
	if mean := ends / len(g); most < 4*mean {
		t.Errorf("nobody has many more friends than the mean of %d: at most %d", mean, most)
	}
}

// The most popular reader has the share that Zipf's law gives, and everybody reads only posts of friends.
func TestTraceFollowsTheModel(t *testing.T) {
	g := Synthetic(962, 18812)
	c := Reed98
	trace := c.Trace(g, 1)
	byUser := map[int]int{}
	read := map[int]map[int32]bool{}
	for _, r := range trace {
		byUser[r.User]++
		if read[r.User] == nil {
			read[r.User] = map[int32]bool{}
		}
		read[r.User][r.Post] = true
		if !slices.Contains(g[r.User], r.Post/int32(c.Posts)) {
			t.Fatalf("%d read post %d of nobody they know", r.User, r.Post)
		}
	}
	sum, top, busiest := 0.0, 0, 0
	for i := range g {
		sum += math.Pow(float64(i+1), -c.Skew)
		if byUser[i] > top {
			top, busiest = byUser[i], i
		}
	}
	if share, want := float64(top)/float64(len(trace)), 1/sum; math.Abs(share-want) > 0.01 {
		t.Errorf("the most popular reader has %.3f of the requests, want %.3f", share, want)
	}
	if n := len(read[busiest]); n > c.Timeline {
		t.Errorf("a timeline of %d posts", n)
	}
	if again := c.Trace(g, 1); !slices.Equal(trace, again) {
		t.Error("the same seed gives another trace")
	}
}

// One worker with room for all: every request but the first of each post is a hit.
func TestHitsAreCounted(t *testing.T) {
	c := Config{Workers: 1, Cache: 3, UnderWay: 1, Every: 1}
	for cache, want := range map[int]float64{3: 3.0 / 6, 2: 1.0 / 6, 1: 0} {
		c.Cache = cache
		p, err := placement.New(placement.NameRoundRobin, placement.Config{})
		if err != nil {
			t.Fatal(err)
		}
		trace := []Request{{0, 1}, {0, 2}, {0, 1}, {0, 3}, {0, 2}, {0, 1}}
		res, err := c.Run(p, ByPost, trace)
		if err != nil || res.Hit != want || res.Imbalance != 1 {
			t.Errorf("cache of %d: %+v, %v, want %v of hits", cache, res, err, want)
		}
	}
}

// The order that the benchmark shows, on a small scale: with colours more hits than without, and measured load is more even.
func TestPoliciesKeepTheirOrder(t *testing.T) {
	c := Reed98
	c.Requests = 24000
	trace := c.Trace(Synthetic(962, 18812), 3)
	results := map[string]Result{}
	for _, name := range []string{placement.NameRandom, placement.NameLeastAssigned, placement.NameAdaptive} {
		p, err := placement.New(name, placement.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if results[name], err = c.Run(p, ByUser, trace); err != nil {
			t.Fatal(err)
		}
	}
	random, assigned, adaptive := results[placement.NameRandom], results[placement.NameLeastAssigned], results[placement.NameAdaptive]
	if !(random.Hit < assigned.Hit/2 && assigned.Hit < adaptive.Hit && adaptive.Imbalance < assigned.Imbalance) {
		t.Errorf("random %+v, least-assigned %+v, adaptive %+v", random, assigned, adaptive)
	}
}
