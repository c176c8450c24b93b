package scheduler_test

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
)

// crowd starts agents that have sessions.
func crowd(t testing.TB, d *daemon, n int) []*node {
	t.Helper()
	nodes := make([]*node, n)
	var starting sync.WaitGroup
	token := d.token(t)
	for i := range nodes {
		nodes[i] = makeNode(t, token, d.url)
		nodes[i].cfg.Log = nil
		starting.Go(nodes[i].start)
	}
	starting.Wait()
	eventually(t, "sessions", func() error {
		for _, n := range nodes {
			if err := reachable(n); err != nil {
				return err
			}
		}
		return nil
	})
	return nodes
}

// rush lets all agents enter one image at once, and returns how long it took until the last had all its positions.
func rush(t testing.TB, nodes []*node) time.Duration {
	t.Helper()
	start := time.Now()
	for _, n := range nodes {
		n.enter(imageName(1))
	}
	eventually(t, "places", func() error {
		for _, n := range nodes {
			if n.at(imageName(1)) == nil {
				return errors.New("not all have places")
			}
		}
		return nil
	})
	took := time.Since(start)
	eventually(t, "parents know their children", func() error { return consistent(imageName(1), nodes) })
	return took
}

// A crowd enters at once: everybody gets a place, everybody's parent knows, and the store was written far less often than there
// are members.
func TestCrowd(t *testing.T) {
	const agents = 60
	cfg := config(t)
	cfg.Log, cfg.Admin = nil, freePort(t)
	d := start(t, cfg, nil)
	nodes := crowd(t, d, agents)
	took := rush(t, nodes)
	writes := metric(t, cfg.Admin, "xylem_scheduler_write_seconds_count")
	t.Logf("%d agents have places after %v and %v writes", agents, took, writes)
	if writes > agents/2 {
		t.Errorf("%v writes for %d agents", writes, agents)
	}
	if got := metric(t, cfg.Admin, "xylem_scheduler_sessions"); got != agents {
		t.Errorf("%v sessions", got)
	}
	var leaving sync.WaitGroup
	for _, n := range nodes[:agents/2] {
		leaving.Go(n.stop)
	}
	leaving.Wait()
	eventually(t, "places without half of them", func() error { return consistent(imageName(1), nodes[agents/2:]) })
}

// cpu returns what this process used.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkThousandAgents runs a scheduler with its etcd and a thousand agents in one process, over TLS: how long joining and
// entering take, and what heartbeats cost (agents' part included).
func BenchmarkThousandAgents(b *testing.B) {
	cfg := config(b)
	cfg.Log = nil
	d := start(b, cfg, nil)
	begin := time.Now()
	nodes := crowd(b, d, 1000)
	b.ReportMetric(time.Since(begin).Seconds(), "s/join")
	for b.Loop() {
		b.ReportMetric(rush(b, nodes).Seconds(), "s/enter")
		used, since := cpu(b), time.Now()
		time.Sleep(5 * time.Second)
		b.ReportMetric(float64((cpu(b)-used).Milliseconds())/float64(time.Since(since).Seconds()), "cpu-ms/s")
		for _, n := range nodes {
			n.client.Leave(imageName(1))
		}
		eventually(b, "no tree", func() error {
			if trees, err := api.NewAdmin(cfg.Socket()).Trees(b.Context()); err != nil || len(trees) > 0 {
				return errors.Join(err, errors.New("there is one"))
			}
			return nil
		})
		for _, n := range nodes {
			n.forget(imageName(1))
		}
	}
	var stopping sync.WaitGroup
	for _, n := range nodes {
		stopping.Go(n.stop)
	}
	stopping.Wait()
}
