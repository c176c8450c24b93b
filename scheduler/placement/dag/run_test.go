package dag

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every task runs once, with the outputs of its inputs and its colour, and no more at a time than allowed.
func TestRunInvokesEveryTaskOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := graphs(t)
		colours := g.Chains("")
		parallel := rapid.IntRange(1, 4).Draw(t, "parallel")
		var mu sync.Mutex
		var running atomic.Int32
		runs := map[Task]int{}
		outputs, err := Run(context.Background(), g, colours, parallel, func(_ context.Context, colour string, task Task, inputs []Task) (Task, error) {
			if n := running.Add(1); int(n) > parallel {
				t.Errorf("%d at a time, %d are allowed", n, parallel)
			}
			defer running.Add(-1)
			mu.Lock()
			defer mu.Unlock()
			runs[task]++
			if colour != colours[task] || !slices.Equal(inputs, g.nodes[task].Inputs) {
				t.Errorf("task %d got colour %s and inputs %v", task, colour, inputs)
			}
			return task, nil
		})
		if err != nil || !slices.Equal(outputs, tasks(g.Len())) {
			t.Fatalf("got %v, %v", outputs, err)
		}
		for task := range g.Len() {
			if runs[Task(task)] != 1 {
				t.Fatalf("task %d ran %d times", task, runs[Task(task)])
			}
		}
	})
}

// diamond is one task that two read, whose outputs the last reads.
func diamond(t *testing.T) *Graph {
	t.Helper()
	g, err := New([]Node{{Name: "load"}, {Name: "left", Inputs: []Task{0}}, {Name: "right", Inputs: []Task{0}}, {Name: "join", Inputs: []Task{1, 2}}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestRunIsParallel(t *testing.T) {
	for parallel, want := range map[int]time.Duration{1: 4 * time.Second, 2: 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			g, begin := diamond(t), time.Now()
			_, err := Run(t.Context(), g, g.Chains(""), parallel, func(context.Context, string, Task, []int) (int, error) {
				time.Sleep(time.Second)
				return 0, nil
			})
			if took := time.Since(begin); err != nil || took != want {
				t.Errorf("%d at a time: %v, %v, want %v", parallel, took, err, want)
			}
		})
	}
}

func TestRunStopsAtTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, broken := diamond(t), errors.New("broken")
		var joined, cancelled bool
		_, err := Run(t.Context(), g, g.Chains(""), 2, func(ctx context.Context, _ string, task Task, _ []int) (int, error) {
			switch task {
			case 1:
				time.Sleep(time.Second)
				return 0, broken
			case 2: // under way at that time
				<-ctx.Done()
				cancelled = true
				return 0, ctx.Err()
			case 3:
				joined = true
			}
			return 0, nil
		})
		if !errors.Is(err, broken) || err.Error() != "task 1 (left): broken" {
			t.Errorf("got %v", err)
		}
		if joined || !cancelled {
			t.Errorf("the last task ran: %v; the one under way was cancelled: %v", joined, cancelled)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	g := diamond(t)
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	_, err := Run(ctx, g, g.Chains(""), 1, func(context.Context, string, Task, []int) (int, error) {
		runs++
		cancel()
		return 0, nil
	})
	if !errors.Is(err, context.Canceled) || runs != 1 {
		t.Errorf("%v after %d tasks", err, runs)
	}
}

// What was done is not thrown away because the context ended just afterwards.
func TestRunThatIsDoneIsDone(t *testing.T) {
	g := diamond(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Run(ctx, g, g.Chains(""), 1, func(_ context.Context, _ string, task Task, _ []int) (int, error) {
		if task == 3 {
			cancel()
		}
		return 0, nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRunChecksItsArguments(t *testing.T) {
	g := diamond(t)
	invoke := func(context.Context, string, Task, []int) (int, error) { return 0, nil }
	if _, err := Run(t.Context(), g, Colours{"one"}, 1, invoke); !errors.Is(err, ErrGraph) {
		t.Errorf("too few colours: got %v", err)
	}
	if _, err := Run(t.Context(), g, g.Chains(""), 0, invoke); !errors.Is(err, ErrGraph) {
		t.Errorf("none at a time: got %v", err)
	}
}
