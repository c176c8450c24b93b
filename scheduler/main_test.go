package scheduler_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

func TestMain(m *testing.M) {
	if os.Getenv(asProcess) != "" {
		runAsProcess()
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a thing may take on a busy machine.
const patience = 30 * time.Second

// eventually waits until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	err := errors.New("not tried")
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// logger writes to the test's log, while the test runs.
func logger(t testing.TB, name string) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.close)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("of", name)
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}

func (w *testWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil && testing.Verbose() {
		w.t.Log(strings.TrimSpace(string(line)))
	}
	return len(line), nil
}

// freePort returns an address on loopback that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// daemon is a scheduler that runs in this process.
type daemon struct {
	cfg  scheduler.Config
	url  string
	stop func()
}

// config returns the configuration of a scheduler that is quick to notice things.
func config(t testing.TB) scheduler.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "xylem") // short: a socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := scheduler.Default()
	cfg.Root, cfg.State, cfg.Listen, cfg.Admin = filepath.Join(dir, "root"), filepath.Join(dir, "state"), freePort(t), ""
	cfg.Log = logger(t, "scheduler "+cfg.Listen)
	return cfg
}

// start runs a scheduler on a store, or with an etcd of its own.
func start(t testing.TB, cfg scheduler.Config, s store.Store) *daemon {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		if s != nil {
			done <- scheduler.RunOn(ctx, cfg, s)
		} else {
			done <- scheduler.Run(ctx, cfg)
		}
	}()
	d := &daemon{cfg: cfg, url: "https://" + cfg.Listen}
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler: %v", err)
		}
	})
	t.Cleanup(d.stop)
	eventually(t, "scheduler starts", func() error {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("scheduler: %v", err)
		default:
		}
		return api.NewAdmin(cfg.Socket()).Ready(t.Context())
	})
	return d
}

// token returns the cluster's first join token.
func (d *daemon) token(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(d.cfg.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// node is an agent as far as schedulers are concerned.
type node struct {
	t      testing.TB
	client *api.Client
	id     string
	cfg    api.ClientConfig
	stop   func()

	mu        sync.Mutex
	positions map[digest.Digest][]*api.Position // by stripe
	revoked   []string
	draining  bool
	failed    []string
	wrong     []string // what must not happen
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newNode starts an agent.
func newNode(t testing.TB, token string, schedulers ...string) *node {
	t.Helper()
	n := makeNode(t, token, schedulers...)
	n.start()
	return n
}

func makeNode(t testing.TB, token string, schedulers ...string) *node {
	t.Helper()
	n := &node{t: t, positions: map[digest.Digest][]*api.Position{}}
	n.cfg = api.ClientConfig{
		Schedulers: schedulers, Token: token, Dir: t.TempDir(), Key: newKey(t), Handler: n, Heartbeat: n.heartbeat, Log: logger(t, "agent"),
	}
	var err error
	n.id, err = api.PeerID(n.cfg.Key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// start runs the agent, again if it was stopped.
func (n *node) start() {
	n.t.Helper()
	client, err := api.NewClient(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.client = client
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("agent: %v", err)
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		clear(n.positions)
		for _, w := range n.wrong {
			n.t.Error(w)
		}
	})
	n.t.Cleanup(n.stop)
}

func (n *node) Position(p api.Position) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.positions[p.Image] == nil {
		n.positions[p.Image] = make([]*api.Position, p.Stripes)
	}
	if last := n.positions[p.Image][p.Stripe]; last != nil && p.Epoch < last.Epoch {
		n.wrong = append(n.wrong, fmt.Sprintf("epoch %x after %x", p.Epoch, last.Epoch))
	}
	n.positions[p.Image][p.Stripe] = &p
}

func (n *node) Revoked(peers []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revoked = peers
}

func (n *node) heartbeat() api.Heartbeat {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := api.Heartbeat{Agent: api.Peer{ID: n.id, Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:4001")}}, Draining: n.draining}
	for image, positions := range n.positions {
		m := api.Membership{Image: image, Held: make([]int, len(positions)), Total: slices.Repeat([]int{3}, len(positions)), Failed: slices.Clone(n.failed)}
		for _, p := range positions {
			epoch := uint64(0)
			if p != nil {
				epoch = p.Epoch
			}
			m.Epochs = append(m.Epochs, epoch)
		}
		h.Images = append(h.Images, m)
	}
	return h
}

// at returns where the agent is, nil if that is not known in all stripes.
func (n *node) at(image digest.Digest) []*api.Position {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.positions[image]
	if len(all) == 0 || slices.Contains(all, nil) {
		return nil
	}
	return slices.Clone(all)
}

// enter enters an image and forgets what the agent knew.
func (n *node) enter(image digest.Digest) {
	n.client.Enter(image, "registry.example/image:1", []int{100, 100})
}

func imageName(n int) digest.Digest { return digest.FromString(fmt.Sprint("image ", n)) }

// consistent tells whether what agents know makes trees: everybody but the root has a parent, who knows the child with the same epoch.
func consistent(image digest.Digest, nodes []*node) error {
	known := map[string][]*api.Position{}
	for _, n := range nodes {
		if known[n.id] = n.at(image); known[n.id] == nil {
			return fmt.Errorf("%s does not know its place", n.id)
		}
	}
	for stripe := range 2 {
		if err := consistentStripe(stripe, known); err != nil {
			return fmt.Errorf("stripe %d: %w", stripe, err)
		}
	}
	return nil
}

func consistentStripe(stripe int, known map[string][]*api.Position) error {
	roots, edges := 0, 0
	for id, positions := range known {
		p := positions[stripe]
		if p.Parent == nil {
			roots++
			continue
		}
		parent := known[p.Parent.ID]
		if parent == nil {
			return fmt.Errorf("%s is fed by %s, who is not there", id, p.Parent.ID)
		}
		if !slices.ContainsFunc(parent[stripe].Children, func(c api.Child) bool { return c.ID == id && c.Epoch == p.Epoch }) {
			return fmt.Errorf("%s does not know that it feeds %s with epoch %x", p.Parent.ID, id, p.Epoch)
		}
	}
	for _, positions := range known {
		edges += len(positions[stripe].Children)
	}
	if roots != 1 || edges != len(known)-1 {
		return fmt.Errorf("%d roots, %d edges for %d agents", roots, edges, len(known))
	}
	return nil
}

// forget lets the agent forget an image that it left.
func (n *node) forget(image digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.positions, image)
}

// metric returns the value of a metric without labels.
func metric(t testing.TB, admin, name string) float64 {
	t.Helper()
	answer, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
