package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/xylem-project/xylem/hack/figures"
	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

const (
	burstHosts     = 8
	burstInstances = 64
	burstRate      = 100 * lab.Mbit
	// burstTimeout is far more than it may take.
	burstTimeout = 120 * time.Second
	// burstData is how much of its image a program reads before it is ready; none of it can be compressed.
	burstData = 50 << 20
)

var burstRows = []figures.Row{
	figures.AtMost("burst_last_over_first", fmt.Sprintf("%d instances on %d hosts at 100 Mbit/s: last ready against first", burstInstances, burstHosts), "1.3", 1.3),
	figures.Shown("burst_first_seconds", "the same: first answer"),
	figures.Shown("burst_last_seconds", "the same: last answer"),
	figures.Shown("burst_egress_over_f", "the same: what left the registry, in sizes of the image"),
}

// burst measures how soon instances on many hosts are ready that are all asked for at once, of an image that no host has.
func (b *bench) burst(ctx context.Context) error {
	var first, last, ratio, egress []float64
	for round := range b.Rounds {
		times, sent, err := b.burstOnce(ctx)
		if err != nil {
			return err
		}
		from, to := slices.Min(times).Seconds(), slices.Max(times).Seconds()
		fmt.Printf("   round %d: first %.2f s, last %.2f s, egress %.2f F\n", round+1, from, to, sent)
		first, last, ratio, egress = append(first, from), append(last, to), append(ratio, to/from), append(egress, sent)
	}
	b.Add(figures.Summary("burst_last_over_first", "ratio", ratio), figures.Summary("burst_first_seconds", "s", first),
		figures.Summary("burst_last_seconds", "s", last), figures.Summary("burst_egress_over_f", "ratio", egress))
	return nil
}

// burstOnce returns when each of the invocations had its answer, each of another instance, and what left the registry.
func (b *bench) burstOnce(ctx context.Context) (times []time.Duration, egress float64, err error) {
	l, err := lab.Up(ctx, lab.Config{Dir: lab.InMemory, Hosts: burstHosts, Link: lab.Link{Up: burstRate, Down: burstRate, Congestion: "cubic"},
		Agents: true, Containerd: true, Scheduler: true, Functions: true, Xylem: b.Xylem, AgentConfig: "functions.memory = \"8GiB\"\nfunctions.cpu = 1000.0\n"})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	image, err := readerImage(ctx, burstData)
	if err != nil {
		return nil, 0, err
	}
	ref, err := l.Services.Push(ctx, "reader:1", image)
	if err != nil {
		return nil, 0, err
	}
	if _, err := l.Services.Convert(ctx, ref, "--push"); err != nil {
		return nil, 0, err
	}
	user, err := l.User()
	if err != nil {
		return nil, 0, err
	}
	if err := nodes(ctx, user, burstHosts); err != nil {
		return nil, 0, err
	}
	_, err = user.Create(ctx, api.FunctionSpec{Name: "reader", Image: ref, Concurrency: 1, CPU: 100, PerNode: burstInstances / burstHosts,
		StartTimeout: api.Duration{Duration: 2 * time.Minute}, Timeout: api.Duration{Duration: 2 * time.Minute}})
	if err != nil {
		return nil, 0, err
	}
	before, err := l.Registry().Traffic(ctx)
	if err != nil {
		return nil, 0, err
	}
	invoking, cancel := context.WithTimeout(ctx, burstTimeout)
	defer cancel()
	times, err = invokeTogether(invoking, user, "reader", burstInstances)
	if err != nil {
		for _, h := range l.Hosts() {
			err = fmt.Errorf("%w\n%s: %s", err, h.Name, h.Node.AgentLogTail())
		}
		return nil, 0, err
	}
	after, err := l.Registry().Traffic(ctx)
	return times, float64(after.Sub(before).Sent) / burstData, err
}

// nodes waits until the scheduler has that many.
func nodes(ctx context.Context, user *api.User, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		list, err := user.Nodes(ctx)
		if err == nil && len(list) == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d nodes take work: %w", len(list), n, errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// invokeTogether invokes a function n times at once and returns how long each took to begin its answer. No invocation ends before all have
// begun, so each has an instance of its own.
func invokeTogether(ctx context.Context, user *api.User, name string, n int) ([]time.Duration, error) {
	var mu sync.Mutex
	var times []time.Duration
	seen := map[string]bool{}
	all := make(chan struct{})
	start := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for range n {
		g.Go(func() error {
			resp, err := user.Invoke(ctx, name, until{ctx, all}, api.InvokeOptions{})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %q: %w", resp.Status, line, err)
			}
			mu.Lock()
			times, seen[line] = append(times, time.Since(start)), true
			if len(times) == n {
				close(all)
			}
			mu.Unlock()
			select { // an answer that is closed early frees its instance
			case <-all:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if len(seen) != n {
		return nil, fmt.Errorf("%d invocations ran in %d instances", n, len(seen))
	}
	return times, nil
}

// until is a body that ends when something has happened.
type until struct {
	ctx  context.Context
	done <-chan struct{}
}

func (u until) Read([]byte) (int, error) {
	select {
	case <-u.done:
		return 0, io.EOF
	case <-u.ctx.Done():
		return 0, u.ctx.Err()
	}
}

// readerImage builds the image of the program "reader".
func readerImage(ctx context.Context, size int) (v1.Image, error) {
	data := make([]byte, size)
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{1}), data); err != nil {
		return nil, err
	}
	return nodelab.FunctionImage(ctx, ".", "reader", map[string][]byte{"data": data})
}
