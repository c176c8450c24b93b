package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// TestProxyCommand serves until it is interrupted, and says so with exit code 0.
func TestProxyCommand(t *testing.T) {
	upstream := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer upstream.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil { // for the proxy to take
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	var stderr bytes.Buffer
	exited := make(chan int, 1)
	go func() {
		exited <- run(ctx, stdio{nil, io.Discard, &stderr}, []string{"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "run"), "proxy",
			"--listen", addr, "--admin", "", "--default-upstream", strings.TrimPrefix(upstream.URL, "http://"), "--cache-budget", "1GiB"})
	}()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr}
	var status int
	for deadline := time.Now().Add(20 * time.Second); status == 0 && time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		if resp, err := client.Get("http://" + addr + "/v2/some/image/manifests/v1"); err == nil {
			status = resp.StatusCode
			resp.Body.Close()
		}
	}
	cancel()
	if code := <-exited; code != 0 || status != http.StatusNotFound {
		t.Errorf("exit code %d, status %d of what is not there: %s", code, status, stderr.String())
	}
}

// TestProxyListensOnLoopbackOnly: it asks nobody who he is.
func TestProxyListensOnLoopbackOnly(t *testing.T) {
	dir := t.TempDir()
	r := do(t, "--root", dir, "--state", dir, "proxy", "--listen", "0.0.0.0:0", "--admin", "")
	if r.code != 1 || !strings.Contains(r.stderr, "loopback") {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
}
