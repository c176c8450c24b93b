package replay

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Config is the model's numbers.
type Config struct {
	Workers  int
	Requests int
	Skew     float64 // exponent of Zipf's law, by which people are drawn
	Posts    int     // of each person
	Timeline int     // posts on a timeline
	Cache    int     // posts that a worker keeps
	UnderWay int     // requests that count as load of their workers: a request and those that came just before
	Every    int     // requests between two calls of Rebalance
}

// Reed98 is the experiment for the graph of that name.
var Reed98 = Config{Workers: 24, Requests: 72000, Skew: 0.99, Posts: 10, Timeline: 50, Cache: 54, UnderWay: 2400, Every: 1000}

// Request is that somebody reads a post.
type Request struct {
	User int
	Post int32
}

// Trace returns the requests that a seed gives. People without friends read nothing.
func (c Config) Trace(g Graph, seed uint64) []Request {
	r := rand.New(rand.NewPCG(seed, 1))
	people := r.Perm(len(g))
	zipf := newZipf(len(g), c.Skew)
	timelines := make([][]int32, len(g))
	for u, friends := range g {
		timelines[u] = c.timeline(friends, r)
	}
	trace := make([]Request, 0, c.Requests)
	for len(trace) < c.Requests {
		u := people[zipf.next(r)]
		if t := timelines[u]; len(t) > 0 {
			trace = append(trace, Request{u, t[r.IntN(len(t))]})
		}
	}
	return trace
}

func (c Config) timeline(friends []int32, r *rand.Rand) []int32 {
	posts := make([]int32, 0, len(friends)*c.Posts)
	for _, f := range friends {
		for i := range c.Posts {
			posts = append(posts, f*int32(c.Posts)+int32(i))
		}
	}
	r.Shuffle(len(posts), func(i, j int) { posts[i], posts[j] = posts[j], posts[i] })
	return slices.Clip(posts[:min(len(posts), c.Timeline)])
}

// draw draws numbers, each as often as its weight says.
type draw []float64 // sums of the weights

func newDraw(weights []float64) draw {
	d := make(draw, len(weights))
	sum := 0.0
	for i, w := range weights {
		sum += w
		d[i] = sum
	}
	return d
}

// newZipf draws numbers below n, i with a weight of (i+1)^-s.
func newZipf(n int, s float64) draw {
	weights := make([]float64, n)
	for i := range weights {
		weights[i] = math.Pow(float64(i+1), -s)
	}
	return newDraw(weights)
}

func (d draw) next(r *rand.Rand) int {
	i, _ := slices.BinarySearch(d, r.Float64()*d[len(d)-1])
	return min(i, len(d)-1)
}
