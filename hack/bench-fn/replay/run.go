package replay

import (
	"container/list"
	"errors"
	"slices"
	"strconv"

	"github.com/xylem-project/xylem/scheduler/placement"
)

// Result is what a policy reached.
type Result struct {
	Hit       float64 // of all requests
	Imbalance float64 // requests of the busiest worker, of the mean
	Moved     int     // colours that Rebalance moved
}

// Colour is what a request names as its colour.
type Colour func(Request) string

// ByUser colours a request by who reads, ByPost by what is read.
func ByUser(r Request) string { return "user-" + strconv.Itoa(r.User) }
func ByPost(r Request) string { return "post-" + strconv.Itoa(int(r.Post)) }

// Run places a trace with a policy that has no instances yet.
func (c Config) Run(p placement.Policy, colour Colour, trace []Request) (Result, error) {
	for w := range c.Workers {
		p.Add(placement.Instance(w))
	}
	caches := make([]*lru, c.Workers)
	for i := range caches {
		caches[i] = newLRU(c.Cache)
	}
	load, _ := p.(placement.LoadAware)
	balance, _ := p.(placement.Rebalancer)
	served := make([]int, c.Workers)
	var at []placement.Instance
	var res Result
	hits := 0
	for n, r := range trace {
		if balance != nil && n > 0 && n%c.Every == 0 {
			res.Moved += Moved(balance.Rebalance())
		}
		w, ok := p.Pick(colour(r))
		if !ok {
			return Result{}, errors.New("no worker was picked")
		}
		at = append(at, w)
		if load != nil {
			load.Assigned(w)
			if n >= c.UnderWay {
				load.Done(at[n-c.UnderWay])
			}
		}
		served[w]++
		if caches[w].get(r.Post) {
			hits++
		}
	}
	mean := float64(len(trace)) / float64(c.Workers)
	res.Hit, res.Imbalance = float64(hits)/float64(len(trace)), float64(slices.Max(served))/mean
	return res, nil
}

// Moved returns how many colours moved.
func Moved(moves placement.Moves) (n int) {
	for _, m := range moves {
		n += len(m.Colours)
	}
	return n
}

// lru is the cache of a worker.
type lru struct {
	size  int
	byKey map[int32]*list.Element
	order *list.List // the last used first
}

func newLRU(size int) *lru { return &lru{size, map[int32]*list.Element{}, list.New()} }

// get says whether a post is there, and puts it there.
func (c *lru) get(post int32) bool {
	if e := c.byKey[post]; e != nil {
		c.order.MoveToFront(e)
		return true
	}
	c.byKey[post] = c.order.PushFront(post)
	if c.order.Len() > c.size {
		last := c.order.Back()
		delete(c.byKey, last.Value.(int32))
		c.order.Remove(last)
	}
	return false
}
