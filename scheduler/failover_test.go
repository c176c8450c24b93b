package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/etcd"
	"github.com/xylem-project/xylem/scheduler/store/storetest"
)

// asProcess makes the test binary a scheduler: the value is its configuration.
const asProcess = "XYLEM_TEST_SCHEDULER"

func runAsProcess() {
	var cfg scheduler.Config
	err := json.Unmarshal([]byte(os.Getenv(asProcess)), &cfg)
	if err == nil {
		err = scheduler.Run(context.Background(), cfg)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// process runs a scheduler that can be killed.
func process(t *testing.T, cfg scheduler.Config) (kill func()) {
	t.Helper()
	cfg.Log = nil
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asProcess+"="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		cmd.Process.Kill() //nolint:errcheck // it is dead then
		cmd.Wait()         //nolint:errcheck // by a signal
	}
	t.Cleanup(kill)
	eventually(t, "scheduler starts", func() error { return api.NewAdmin(cfg.Socket()).Ready(t.Context()) })
	return kill
}

// positions returns what agents know.
func positions(image digest.Digest, nodes []*node) (all [][]*api.Position) {
	for _, n := range nodes {
		all = append(all, n.at(image))
	}
	return all
}

// epochs returns the epochs of positions.
func epochs(all [][]*api.Position) (list []uint64) {
	for _, positions := range all {
		for _, p := range positions {
			list = append(list, p.Epoch)
		}
	}
	return list
}

// A scheduler that is killed finds its trees again: members keep their places, and new ones get places with later epochs.
func TestKilledSchedulerGoesOn(t *testing.T) {
	cfg := config(t)
	kill := process(t, cfg)
	d := &daemon{cfg: cfg, url: "https://" + cfg.Listen}
	nodes := members(t, d, 9, 1)
	eventually(t, "places", func() error { return consistent(imageName(1), nodes) })
	before := epochs(positions(imageName(1), nodes))
	kill()
	eventually(t, "agents notice", func() error {
		if nodes[0].client.Reachable() {
			return errors.New("reachable")
		}
		return nil
	})
	if err := consistent(imageName(1), nodes); err != nil {
		t.Errorf("without a scheduler: %v", err)
	}
	late := newNode(t, d.token(t), d.url) // cannot even join yet
	late.enter(imageName(1))
	process(t, cfg)
	all := append(slices.Clone(nodes), late)
	eventually(t, "a tenth has a place", func() error { return consistent(imageName(1), all) })
	kept := 0
	for i, epoch := range epochs(positions(imageName(1), nodes)) {
		if epoch == before[i] {
			kept++
		} else if epoch>>40 <= before[i]>>40 {
			t.Errorf("epoch %x after %x", epoch, before[i])
		}
	}
	if kept < len(before)-3 {
		t.Errorf("%d of %d places were kept", kept, len(before))
	}
	eventually(t, "the scheduler knows all", func() error { return seen(d, imageName(1), 10) })
}

// seen tells whether all members of a tree were heard of just now.
func seen(d *daemon, image digest.Digest, members int) error {
	v, err := api.NewAdmin(d.cfg.Socket()).Tree(context.Background(), image)
	if err != nil {
		return err
	}
	for _, m := range v.Members {
		if time.Since(m.Seen) > 3*time.Second {
			return fmt.Errorf("%s was seen at %v", m.Agent.ID, m.Seen)
		}
	}
	if len(v.Members) != members {
		return fmt.Errorf("%d members", len(v.Members))
	}
	return nil
}

// pair runs two schedulers on one store.
func pair(t *testing.T, s store.Store) (first, second *daemon) {
	t.Helper()
	first = start(t, config(t), s)
	return first, start(t, config(t), s)
}

// Trees are spread over schedulers, and agents that know one of these find the others. When a scheduler stops, another
// takes its trees over; when it comes back, it gets them back; and nobody loses a place.
func TestTreesMoveWithSchedulers(t *testing.T) {
	const images = 8
	s := store.NewMemory()
	first, second := pair(t, s)
	var nodes []*node
	for i := range 5 {
		nodes = append(nodes, newNode(t, first.token(t), []string{first.url, second.url}[i%2]))
	}
	for image := range images {
		for _, n := range nodes {
			n.enter(imageName(image))
		}
	}
	all := func() error {
		for image := range images {
			if err := consistent(imageName(image), nodes); err != nil {
				return err
			}
		}
		return nil
	}
	eventually(t, "places", all)
	owned := owners(t, second)
	if len(owned) != 2 {
		t.Fatalf("owners: %v", owned)
	}
	first.stop()
	eventually(t, "the second owns all", func() error { return ownsAll(t, second, second.url, images) })
	if err := all(); err != nil {
		t.Error(err)
	}
	late := newNode(t, first.token(t), second.url)
	nodes = append(nodes, late)
	for image := range images {
		late.enter(imageName(image))
	}
	eventually(t, "places for one more", all)
	again := start(t, first.cfg, s)
	eventually(t, "trees are spread again", func() error {
		if now := owners(t, again); now[again.url] != owned[again.url] {
			return fmt.Errorf("owners: %v, before %v", now, owned)
		}
		return nil
	})
	late.client.Leave(imageName(0))
	late.client.Leave(imageName(1))
	last := newNode(t, first.token(t), again.url)
	last.enter(imageName(2))
	eventually(t, "places", func() error {
		return errors.Join(consistent(imageName(0), nodes[:5]), consistent(imageName(1), nodes[:5]), consistent(imageName(2), append(slices.Clone(nodes), last)))
	})
}

// owners counts the trees of schedulers.
func owners(t *testing.T, d *daemon) map[string]int {
	t.Helper()
	trees, err := api.NewAdmin(d.cfg.Socket()).Trees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, info := range trees {
		count[info.Owner]++
	}
	return count
}

func ownsAll(t *testing.T, d *daemon, url string, images int) error {
	t.Helper()
	if count := owners(t, d); count[url] != images || len(count) != 1 {
		return fmt.Errorf("owners: %v", count)
	}
	return nil
}

// A scheduler that cannot reach the store any more, but everything else, is no danger: the other takes over, agents follow, and
// members that nobody tells anything keep their places.
func TestCutOffSchedulerIsReplaced(t *testing.T) {
	shared := store.NewMemory()
	faulty := storetest.NewFaulty(shared)
	first, second := start(t, config(t), faulty), start(t, config(t), shared)
	var nodes []*node
	for range 6 {
		nodes = append(nodes, newNode(t, first.token(t), first.url, second.url))
	}
	const images = 6
	for image := range images {
		for _, n := range nodes {
			n.enter(imageName(image))
		}
	}
	all := func() error {
		for image := range images {
			if err := consistent(imageName(image), nodes); err != nil {
				return err
			}
		}
		return nil
	}
	eventually(t, "places", all)
	faulty.Cut()
	cut := time.Now()
	eventually(t, "the second owns all", func() error { return ownsAll(t, second, second.url, images) })
	t.Logf("took over after %v", time.Since(cut))
	nodes[0].client.Leave(imageName(0))
	late := newNode(t, first.token(t), first.url, second.url)
	nodes = append(nodes, late)
	for image := range images {
		late.enter(imageName(image))
	}
	nodes[0].enter(imageName(0))
	eventually(t, "places for one more", all)
	eventually(t, "the second hears of all", func() error { return seen(second, imageName(0), 7) })
	faulty.Mend()
	eventually(t, "trees are spread again", func() error {
		if now := owners(t, second); len(now) != 2 {
			return fmt.Errorf("owners: %v", now)
		}
		return all()
	})
}

// With etcd away, trees stand still and agents keep what they know; who enters hears soon that it cannot be, and gets a place when
// etcd is back.
func TestEtcdAway(t *testing.T) {
	cfg := config(t)
	state := etcd.EmbedConfig{Dir: filepath.Join(cfg.Root, "cluster"), Socket: filepath.Join(cfg.Root, "s")}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	cluster, err := etcd.Embed(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Etcd = []string{"unix://" + state.Socket}
	d := start(t, cfg, nil)
	nodes := members(t, d, 5, 1)
	eventually(t, "places", func() error { return consistent(imageName(1), nodes) })
	late, leaver := newNode(t, d.token(t), d.url), nodes[4]
	eventually(t, "session", func() error { return reachable(late) })
	before := epochs(positions(imageName(1), nodes))
	if err := cluster.Close(); err != nil {
		t.Fatal(err)
	}
	late.enter(imageName(1))
	leaver.stop()
	eventually(t, "the scheduler notices", func() error {
		if api.NewAdmin(cfg.Socket()).Ready(t.Context()) == nil {
			return errors.New("it says that it is ready")
		}
		return nil
	})
	time.Sleep(cfg.Timeout.Duration) // the leaver would be missed
	if late.at(imageName(1)) != nil || !slices.Equal(epochs(positions(imageName(1), nodes[:4])), before[:8]) {
		t.Error("places changed while nothing could be written")
	}
	if err := reachable(nodes[0]); err != nil {
		t.Error(err)
	}
	if cluster, err = etcd.Embed(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cluster.Close() })
	eventually(t, "places without the leaver", func() error { return consistent(imageName(1), append(slices.Clone(nodes[:4]), late)) })
	d.stop()
}

func reachable(n *node) error {
	if !n.client.Reachable() {
		return errors.New("no session")
	}
	return nil
}
