package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/store"
	"github.com/xylem-project/xylem/scheduler/store/etcd"
	"github.com/xylem-project/xylem/scheduler/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// embedded starts a server with data in dir.
func embedded(t *testing.T, cfg etcd.EmbedConfig) *etcd.Server {
	t.Helper()
	s, err := etcd.Embed(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Each test gets a prefix of its own in one server: etcd takes a second to start.
func TestEmbedded(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	embedded(t, etcd.EmbedConfig{Dir: filepath.Join(dir, "data"), Socket: socket})
	n := 0
	storetest.Store(t, func(t *testing.T) store.Store {
		n++
		return dial(t, socket, fmt.Sprintf("/%d/", n))
	})
}

func dial(t *testing.T, socket, prefix string) *etcd.Client {
	t.Helper()
	c, err := etcd.Dial(etcd.Config{Endpoints: []string{"unix://" + socket}, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestInProcess(t *testing.T) {
	storetest.Store(t, func(t *testing.T) store.Store { return embedded(t, etcd.EmbedConfig{Dir: t.TempDir()}) })
}

// What was written is there after the server starts again.
func TestReopened(t *testing.T) {
	dir := t.TempDir()
	first, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := first.Write(t.Context(), store.Tx{Put: []store.Item{{Key: "a", Value: []byte("kept")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	items, err := embedded(t, etcd.EmbedConfig{Dir: dir}).Read(t.Context(), "")
	if err != nil || len(items) != 1 || items[0].Revision != revision || string(items[0].Value) != "kept" {
		t.Errorf("%v %v", items, err)
	}
}

// A holder that cannot reach etcd hears of it in time, calls fail instead of hanging, and others see the key vanish when etcd is
// back.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	cfg := etcd.EmbedConfig{Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s")}
	server, err := etcd.Embed(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, cfg.Socket, "")
	held, lost := make(chan struct{}), make(chan error, 1)
	go func() {
		lost <- c.Hold(t.Context(), store.Item{Key: "live"}, 2*time.Second, func() { close(held) })
	}()
	<-held
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-lost:
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the holder does not know that its key is gone")
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Read(short, ""); !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	embedded(t, cfg)
	news := make(chan int, 100)
	watching, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Watch(watching, "live", func(items []store.Item) { news <- len(items) }) }()
	for n := range news {
		if n == 0 {
			break
		}
	}
	stop()
	<-done
}

func TestNoPlace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	first := embedded(t, etcd.EmbedConfig{Dir: file})
	if _, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: file + "/member/wal/x\x00"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	select {
	case <-first.Failed():
		t.Error("the server failed")
	default:
	}
}

func TestBadTLSFiles(t *testing.T) {
	for _, cfg := range []etcd.Config{{CA: "/nonexistent"}, {Cert: "/nonexistent", Key: "/nonexistent"}, {CA: "etcd_test.go"}} {
		cfg.Endpoints = []string{"https://127.0.0.1:1"}
		if _, err := etcd.Dial(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

// etcd logs where the scheduler does, and a healthy one does not disturb people.
func TestQuiet(t *testing.T) {
	var loud, all bytes.Buffer
	log := slog.New(slog.NewTextHandler(&loud, nil))
	embedded(t, etcd.EmbedConfig{Dir: t.TempDir(), Log: log})
	if loud.Len() > 0 {
		t.Errorf("logged: %s", loud.String())
	}
	s, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&all, &slog.HandlerOptions{Level: slog.LevelDebug - 4}))})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if !strings.Contains(all.String(), "etcd: ") {
		t.Error("nothing is logged for those who look for a fault")
	}
}
