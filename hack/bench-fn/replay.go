package main

import (
	"context"
	"fmt"
	"os"

	"github.com/xylem-project/xylem/hack/bench-fn/replay"
	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/scheduler/placement"
)

const (
	seeds = 5
	// The size of the graph socfb-Reed98.
	reedPeople      = 962
	reedFriendships = 18812
	// eachBusy is the number of requests under way of a lightly loaded worker.
	eachBusy = 8
)

// contest is one way to place the replay's requests.
type contest struct {
	figure string // name without what is measured
	colour replay.Colour
	policy string
	cfg    placement.Config
	load   int // requests under way, if not as usual
	cache  int // posts that a worker keeps, if not as usual
}

func contests() []contest {
	few := eachBusy * replay.Reed98.Workers
	list := []contest{
		{figure: "user", colour: replay.ByUser, policy: placement.NameAdaptive, cfg: placement.Config{Warm: 1}},
		{figure: "user_bounded", colour: replay.ByUser, policy: placement.NameAdaptive, cfg: placement.Config{Warm: 1, LoadBound: 1.25}},
		{figure: "post", colour: replay.ByPost, policy: placement.NameAdaptive, cfg: placement.Config{Warm: replay.Reed98.Cache}},
		{figure: "user_bounded_few", colour: replay.ByUser, policy: placement.NameAdaptive, cfg: placement.Config{Warm: 1, LoadBound: 1.25}, load: few},
		{figure: "post_untold", colour: replay.ByPost, policy: placement.NameAdaptive},
	}
	for _, name := range placement.Names() {
		if name != placement.NameAdaptive {
			list = append(list, contest{figure: "user", colour: replay.ByUser, policy: name}, contest{figure: "post", colour: replay.ByPost, policy: name})
		}
	}
	return list
}

// caches are other sizes of the caches.
var caches = []int{13, 27, 108, 216}

func cacheContests(cache int) []contest {
	figure := fmt.Sprintf("post_cache_%d", cache)
	return []contest{
		{figure: figure, colour: replay.ByPost, policy: placement.NameAdaptive, cfg: placement.Config{Warm: cache}, cache: cache},
		{figure: figure + "_untold", colour: replay.ByPost, policy: placement.NameAdaptive, cache: cache},
		{figure: figure, colour: replay.ByPost, policy: placement.NameLeastAssigned, cache: cache},
	}
}

// name returns the name of one of its figures.
func (c contest) name(what string) string {
	name := "reed98_" + c.figure + "_" + what
	if c.policy != placement.NameAdaptive {
		name += "_" + underscored(c.policy)
	}
	return name
}

func replayRows() []figures.Row {
	rows := []figures.Row{
		figures.AtLeast("reed98_user_hit", "hits, coloured by user: adaptive", ">= 0.38", 0.38),
		figures.Shown("reed98_user_imbalance", "its imbalance"),
		figures.AtLeast("reed98_user_bounded_hit", "the same with a load bound of 1.25", ">= 0.24", 0.24),
		figures.AtMost("reed98_user_bounded_imbalance", "its imbalance", "<= 1.25", 1.25),
		figures.AtLeast("reed98_post_hit", "hits, coloured by post: adaptive", ">= 0.53", 0.53),
		figures.AtMost("reed98_post_imbalance", "its imbalance", "<= 1.05", 1.05),
		figures.Shown("reed98_user_bounded_few_hit", "hits by user with a bound of 1.25 on 8 requests that are under way on each worker"),
		figures.Shown("reed98_user_bounded_few_imbalance", "its imbalance"),
		figures.Shown("reed98_post_untold_hit", "hits by post of an adaptive policy that is not told how many colours stay warm"),
		figures.Shown("reed98_post_untold_imbalance", "its imbalance"),
	}
	for _, c := range contests() {
		if c.policy != placement.NameAdaptive {
			rows = append(rows, figures.Shown(c.name("hit"), "hits by "+c.figure+": "+c.policy), figures.Shown(c.name("imbalance"), "its imbalance"))
		}
	}
	for _, cache := range caches {
		for _, c := range cacheContests(cache) {
			what := fmt.Sprintf("hits by post with %d posts in a cache: %s", cache, c.policy)
			if c.policy == placement.NameAdaptive && c.cfg.Warm == 0 {
				what += ", not told"
			}
			rows = append(rows, figures.Shown(c.name("hit"), what))
		}
	}
	return append(rows, figures.AtMost("moved_fraction_24_25", "colours that move when a 25th instance joins, adaptive, of all", "<= 0.06", 1.0/25+0.02),
		figures.Shown("reed98_synthetic", "1 if the graph was synthetic"))
}

// replay measures the hits of all policies, and what moves when an instance joins afterwards.
func (b *bench) replay(ctx context.Context) error {
	g, synthetic, err := b.readGraph()
	if err != nil {
		return err
	}
	var traces [seeds][]replay.Request
	for seed := range traces {
		traces[seed] = replay.Reed98.Trace(g, uint64(seed))
	}
	var moved []float64
	for _, c := range contests() {
		fractions, err := b.compete(ctx, c, traces[:])
		if err != nil {
			return err
		}
		if c.policy == placement.NameAdaptive {
			moved = append(moved, fractions...)
		}
	}
	for _, cache := range caches {
		for _, c := range cacheContests(cache) {
			if _, err := b.compete(ctx, c, traces[:]); err != nil {
				return err
			}
		}
	}
	b.Add(figures.Summary("moved_fraction_24_25", "ratio", moved), figures.Summary("reed98_synthetic", "count", []float64{synthetic}))
	return nil
}

// compete replays all traces, notes hits and imbalance, and returns what part of the colours moves each time when an instance joins.
func (b *bench) compete(ctx context.Context, c contest, traces [][]replay.Request) (moved []float64, err error) {
	var hits, imbalances []float64
	for seed, trace := range traces {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		res, fraction, err := c.do(uint64(seed), trace)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name("hit"), err)
		}
		hits, imbalances, moved = append(hits, res.Hit), append(imbalances, res.Imbalance), append(moved, fraction)
	}
	b.Add(figures.Summary(c.name("hit"), "ratio", hits), figures.Summary(c.name("imbalance"), "ratio", imbalances))
	return moved, nil
}

// do replays a trace, and lets another instance join.
func (c contest) do(seed uint64, trace []replay.Request) (res replay.Result, moved float64, err error) {
	c.cfg.Seed = seed
	p, err := placement.New(c.policy, c.cfg)
	if err != nil {
		return res, 0, err
	}
	model := replay.Reed98
	if c.load > 0 {
		model.UnderWay = c.load
	}
	if c.cache > 0 {
		model.Cache = c.cache
	}
	if res, err = model.Run(p, c.colour, trace); err != nil {
		return res, 0, err
	}
	colours := map[string]bool{}
	for _, r := range trace {
		colours[c.colour(r)] = true
	}
	return res, float64(replay.Moved(p.Add(placement.Instance(model.Workers)))) / float64(len(colours)), nil
}

// readGraph reads the graph, or makes one.
func (b *bench) readGraph() (g replay.Graph, synthetic float64, err error) {
	if b.graph == "" {
		fmt.Println("   no -graph: a synthetic one of the size of socfb-Reed98")
		return replay.Synthetic(reedPeople, reedFriendships), 1, nil
	}
	file, err := os.Open(b.graph)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	if g, err = replay.ReadGraph(file); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", b.graph, err)
	}
	return g, 0, nil
}
