package agent

import (
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

func TestLikelyBlocksOfAnUnknownImageAreFetchedInTheBackground(t *testing.T) {
	files := map[string][]byte{"bin/a": noise(1, 3<<20), "usr/share/doc/b": noise(2, 3<<20), "lib/c": noise(3, 6<<20)}
	w, cfg := newWorld(t, files), testConfig(t)
	cfg.BackgroundFetch = 4 << 20 // room for the smaller one and a part of the other
	w.convert(nodeKey(t, cfg), nil)
	n := startNode(t, cfg)
	dir := n.mount(w.ref)
	waitFor(t, "the background fetch", func() bool { return strings.Contains(n.log.String(), "likely blocks fetched") })
	if got := w.ranges.Load(); got != 2 {
		t.Errorf("%d requests, want one for each layer with likely blocks", got)
	}
	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		http.Error(rw, "gone", http.StatusNotFound)
		return true
	})
	if got := readAt(t, filepath.Join(dir, "bin/a"), 0, 3<<20); string(got) != string(files["bin/a"]) {
		t.Error("bin/a differs")
	}
	if got := readAt(t, filepath.Join(dir, "lib/c"), 0, 4096); string(got) != string(files["lib/c"][:4096]) {
		t.Error("the start of lib/c differs")
	}
	for _, name := range []string{"usr/share/doc/b", "lib/c"} {
		if _, err := read(t, filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was fetched as a whole", name)
		}
	}
}

// TestWhoGetsNoPlaceFetchesLikelyBlocksAlone: as long as no scheduler says who feeds the agent, and no more than it may need soon.
func TestWhoGetsNoPlaceFetchesLikelyBlocksAlone(t *testing.T) {
	files := map[string][]byte{"bin/a": noise(1, 3<<20), "usr/share/doc/b": noise(2, 3<<20)}
	w, cfg := newWorld(t, files), testConfig(t)
	cfg.BackgroundFetch, cfg.Fill = 4<<20, true
	cfg.Schedulers, cfg.Listen = []string{"https://127.0.0.1:1"}, netip.MustParseAddrPort("127.0.0.1:0")
	cfg.JoinTokenFile = filepath.Join(cfg.Root, "removed")
	w.convert(nodeKey(t, cfg), nil)
	n := startNode(t, cfg)
	dir := n.mount(w.ref)
	waitFor(t, "the background fetch", func() bool { return strings.Contains(n.log.String(), "likely blocks fetched") })
	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		http.Error(rw, "gone", http.StatusNotFound)
		return true
	})
	if got := readAt(t, filepath.Join(dir, "bin/a"), 0, 3<<20); string(got) != string(files["bin/a"]) {
		t.Error("bin/a differs")
	}
	if _, err := read(t, filepath.Join(dir, "usr/share/doc/b")); err == nil {
		t.Error("an agent without a place fetched all of the image")
	}
}

func TestFailedBackgroundFetchIsMadeUpForByDemand(t *testing.T) {
	w, cfg := newWorld(t, twoLayers()), testConfig(t)
	cfg.BackgroundFetch = 1 << 30
	w.convert(nodeKey(t, cfg), nil)
	w.fail(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") == "" {
			return false
		}
		http.Error(rw, "busy", http.StatusForbidden)
		return true
	})
	n := startNode(t, cfg)
	dir := n.mount(w.ref)
	waitFor(t, "the background fetch", func() bool { return strings.Contains(n.log.String(), "blocks are fetched on demand") })
	w.fail(nil)
	assertSame(t, dir, w.files)
}
