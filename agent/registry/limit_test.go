package registry_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xylem-project/xylem/agent/registry"
)

// zeros answers with as many bytes as it says, at once.
type zeros int64

func (n zeros) RoundTrip(r *http.Request) (*http.Response, error) {
	body := struct {
		io.Reader
		io.Closer
	}{io.LimitReader(zeroReader{}, int64(n)), io.NopCloser(nil)}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, ContentLength: int64(n), Request: r}, nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLimits: what is read of registries takes the time that the limits say, and those who read at a time get the same.
func TestLimits(t *testing.T) {
	const each = 1 << 20
	for name, test := range map[string]struct {
		node, slow int64
		readers    map[string]int     // by host
		seconds    map[string]float64 // until the last one of a host is done
	}{
		"none":                       {0, 0, map[string]int{"slow.example": 4, "fast.example": 4}, map[string]float64{"slow.example": 0, "fast.example": 0}},
		"of the node":                {1 << 20, 0, map[string]int{"slow.example": 1, "fast.example": 7}, map[string]float64{"slow.example": 8, "fast.example": 8}},
		"of a host":                  {0, 1 << 18, map[string]int{"slow.example": 2, "fast.example": 2}, map[string]float64{"slow.example": 8, "fast.example": 0}},
		"both":                       {1 << 20, 1 << 18, map[string]int{"slow.example": 1, "fast.example": 3}, map[string]float64{"slow.example": 4, "fast.example": 4}},
		"of a host, more than there": {1 << 20, 1 << 30, map[string]int{"slow.example": 2, "fast.example": 2}, map[string]float64{"slow.example": 4, "fast.example": 4}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := newClient(t, func(cfg *registry.Config) {
					cfg.Limit, cfg.Hosts = test.node, map[string]registry.HostConfig{"slow.example": {Limit: test.slow}}
				})
				c.Through(zeros(each))
				start := time.Now()
				for host, done := range readAll(t, c, test.readers, each) {
					for _, at := range done { // one may have what comes at once after a pause alone, and be done earlier by it
						if got := at.Sub(start).Seconds(); math.Abs(got-test.seconds[host]) > 0.2+0.1*test.seconds[host] {
							t.Errorf("%s was read after %.2f s, want %v", host, got, test.seconds[host])
						}
					}
				}
			})
		})
	}
}

// readAll has readers of each host read a blob at the same time, and returns when they had it.
func readAll(t *testing.T, c *registry.Client, readers map[string]int, size int64) map[string][]time.Time {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	done := map[string][]time.Time{}
	for host, n := range readers {
		for range n {
			wg.Go(func() {
				a, err := c.Do(t.Context(), blobCall(host))
				if err != nil {
					t.Error(err)
					return
				}
				defer a.Body.Close()
				if n, err := io.Copy(io.Discard, a.Body); n != size || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				mu.Lock()
				defer mu.Unlock()
				done[host] = append(done[host], time.Now())
			})
		}
	}
	wg.Wait()
	return done
}

// TestWhoWaitsForALimit can go away at once, and does not pass for a registry that stalls.
func TestWhoWaitsForALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, logs := newClient(t, func(cfg *registry.Config) { cfg.Limit, cfg.StallTimeout = 1<<16, 50*time.Millisecond })
		c.Through(zeros(1 << 20)) // 16 seconds
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second+time.Millisecond, cancel)
		a, err := c.Do(ctx, blobCall("registry.example"))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		start := time.Now()
		n, err := io.Copy(io.Discard, a.Body)
		if took := time.Since(start); !errors.Is(err, context.Canceled) || took > 5*time.Second+2*time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}
		if seconds := float64(n) / (1 << 16); seconds < 5 || seconds > 5.3 {
			t.Errorf("%d bytes came in 5 s", n)
		}
		if logs.count("\n") != 0 {
			t.Errorf("log: %v", logs.buf.String())
		}
	})
}

// TestLimitsOfBlocks: what containers read is limited as what clients of the proxy do.
func TestLimitsOfBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newClient(t, func(cfg *registry.Config) { cfg.Limit = 1 << 20 })
		c.Through(zeros(4 << 20))
		start := time.Now()
		body, err := repository(t, c, "registry.example").Range(t.Context(), describe(content).Digest, 0, 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		n, err := io.Copy(io.Discard, body)
		if seconds := time.Since(start).Seconds(); n != 4<<20 || err != nil || seconds < 3.8 || seconds > 4.1 {
			t.Errorf("%d bytes, %v, after %.2f s, want 4", n, err, seconds)
		}
	})
}
