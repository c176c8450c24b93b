package dag

import (
	"context"
	"fmt"
)

// Invoke runs a task with the outputs of its inputs, in their order, which it must not change. It is called from many goroutines.
type Invoke[O any] func(ctx context.Context, colour string, task Task, inputs []O) (O, error)

// Run invokes every task of a graph once, as soon as its inputs are there, at most so many at a time, and returns the outputs by Task. Of tasks that are
// ready, the one that comes first in the graph's order is the first.
//
// When an invocation fails, those that are under way are cancelled, no other begins, and Run returns that error when all have ended. The same
// happens when ctx ends.
func Run[O any](ctx context.Context, g *Graph, colours Colours, parallel int, invoke Invoke[O]) ([]O, error) {
	if len(colours) != g.Len() || parallel < 1 {
		return nil, fmt.Errorf("%w: %d colours and %d invocations at a time for %d tasks, must be one colour for each and 1 or more", ErrGraph, len(colours), parallel, g.Len())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &run[O]{g: g, colours: colours, invoke: invoke, waits: g.waits(), outputs: make([]O, g.Len()), done: make(chan result[O])}
	r.rank = make([]int, g.Len())
	for i, t := range g.order {
		r.rank[t] = i
		if r.waits[t] == 0 {
			r.ready = append(r.ready, t)
		}
	}
	finished := 0
	for running := 0; ; running-- {
		for running < parallel && len(r.ready) > 0 && ctx.Err() == nil {
			r.start(ctx)
			running++
		}
		if running == 0 {
			break
		}
		res := <-r.done
		if res.err != nil {
			cancel(fmt.Errorf("task %d (%s): %w", res.task, g.nodes[res.task].Name, res.err))
			continue
		}
		r.finish(res)
		finished++
	}
	if finished < g.Len() {
		return nil, context.Cause(ctx)
	}
	return r.outputs, nil
}

// run is the state of a Run, of the goroutine that called it.
type run[O any] struct {
	g       *Graph
	colours Colours
	invoke  Invoke[O]
	waits   []int
	rank    []int  // in the graph's order
	ready   []Task // by rank
	outputs []O
	done    chan result[O]
}

type result[O any] struct {
	task   Task
	output O
	err    error
}

// start invokes the first task that is ready, in a goroutine that ends with its result.
func (r *run[O]) start(ctx context.Context) {
	t := r.ready[0]
	r.ready = r.ready[1:]
	inputs := make([]O, len(r.g.nodes[t].Inputs))
	for i, in := range r.g.nodes[t].Inputs {
		inputs[i] = r.outputs[in]
	}
	go func() {
		output, err := r.invoke(ctx, r.colours[t], t, inputs)
		r.done <- result[O]{t, output, err}
	}()
}

// finish keeps an output and notes who is ready now.
func (r *run[O]) finish(res result[O]) {
	r.outputs[res.task] = res.output
	for _, t := range r.g.readers[res.task] {
		if r.waits[t]--; r.waits[t] == 0 {
			i := len(r.ready)
			for i > 0 && r.rank[r.ready[i-1]] > r.rank[t] {
				i--
			}
			r.ready = append(r.ready, 0)
			copy(r.ready[i+1:], r.ready[i:])
			r.ready[i] = t
		}
	}
}
