package registry_test

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/agent/registry"
	"github.com/xylem-project/xylem/blockfmt"
)

func TestBackoff(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	b := registry.NewBackoff(time.Minute)
	if d := b.Wait(now); d != 0 {
		t.Errorf("at first: %v", d)
	}
	for i, longest := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		longest *= time.Millisecond
		if first := b.Failed(now, 0); first != (i == 0) {
			t.Errorf("failure %d is the first one: %v", i, first)
		}
		d := b.Wait(now)
		if d < longest/2 || d > longest {
			t.Errorf("after failure %d: %v, want %v to %v", i, d, longest/2, longest)
		}
		if b.Failed(now, 0); b.Wait(now) != d {
			t.Error("a failure of a request that was under way counts again")
		}
		now = now.Add(d)
		if d := b.Wait(now); d != 0 {
			t.Errorf("after the wait: %v", d)
		}
	}
	b.Succeeded()
	if !b.Failed(now, 7*time.Second) || b.Wait(now) != 7*time.Second {
		t.Errorf("Retry-After: wait %v, want 7s", b.Wait(now))
	}
	b.Succeeded() // an answer to a request that was under way
	if b.Wait(now) != 7*time.Second {
		t.Error("what the registry asked for is forgotten")
	}
	if b.Failed(now, time.Hour); b.Wait(now) != time.Minute {
		t.Errorf("Retry-After of an hour: wait %v, want 1m", b.Wait(now))
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "0": 0, "-5": 0, "soon": 0, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := registry.RetryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// TestOneBackoffPerHost: while a registry wants rest, nobody on the node sends it anything; those who cannot wait fail
// at once; other registries are not concerned.
func TestOneBackoffPerHost(t *testing.T) {
	var requests atomic.Int32
	busy := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Retry-After", strconv.Itoa(20))
		w.WriteHeader(http.StatusTooManyRequests)
	})
	fine := serve(t, func(w http.ResponseWriter, r *http.Request) { partial(w, r, content) })
	c, _ := newClient(t, nil)
	for range 3 {
		for _, read := range calls {
			if _, err := read(t.Context(), repository(t, c, busy)); !errors.Is(err, blockfmt.ErrTransient) {
				t.Errorf("busy registry: %v", err)
			}
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests to a registry that asked for rest, want 1", n)
	}
	if _, err := calls["Blob"](t.Context(), repository(t, c, fine)); err != nil {
		t.Errorf("other registry: %v", err)
	}
}

// TestRetryAfterIsObeyed: a request goes out again when the registry said, and then succeeds.
func TestRetryAfterIsObeyed(t *testing.T) {
	var last atomic.Int64
	host := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if before := last.Swap(time.Now().UnixNano()); before == 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		} else if d := time.Now().UnixNano() - before; d < int64(900*time.Millisecond) {
			t.Errorf("next request after %v", time.Duration(d))
		}
		partial(w, r, content)
	})
	c, logs := newClient(t, nil)
	if _, _, err := repository(t, c, host).Manifest(t.Context(), digest.FromBytes(content)); err != nil {
		t.Error(err)
	}
	if n := logs.count("backing off"); n != 1 {
		t.Errorf("%d log lines, want 1", n)
	}
}

func TestChallenges(t *testing.T) {
	for _, test := range []struct {
		headers []string
		scheme  string
		realm   string
		scope   string
	}{
		{[]string{`Bearer realm="https://a/token",service="s",scope="repository:x/y:pull,push"`}, "bearer", "https://a/token", "repository:x/y:pull,push"},
		{[]string{`bearer Realm=https://a/token , scope = "x"`}, "bearer", "https://a/token", "x"},
		{[]string{`Basic realm="r"`}, "basic", "r", ""},
		{[]string{`Basic realm="r", Bearer realm="https://a"`}, "bearer", "https://a", ""},
		{[]string{`Negotiate`, `Basic realm="a \"quoted\" one"`}, "basic", `a "quoted" one`, ""},
		{[]string{`Negotiate abc==, Basic`}, "basic", "", ""},
		{[]string{`Bearer`, ``, `,,,"`}, "", "", ""},
	} {
		scheme, params, ok := registry.PickChallenge(test.headers)
		if scheme != test.scheme || params["realm"] != test.realm || params["scope"] != test.scope || ok != (test.scheme != "") {
			t.Errorf("%q: %q %v", test.headers, scheme, params)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/token",service="s",scope="repository:x/y:pull"`)
	f.Add(`Basic realm="a\"b", Bearer x=y, Negotiate abc==`)
	f.Add(`Bearer realm="unterminated\`)
	f.Fuzz(func(t *testing.T, s string) {
		scheme, params, ok := registry.PickChallenge([]string{s})
		if ok && scheme != "bearer" && scheme != "basic" {
			t.Errorf("picked %q", scheme)
		}
		if scheme == "bearer" && (params["realm"] == "" || !strings.Contains(strings.ToLower(s), "realm")) {
			t.Errorf("bearer without a realm: %v", params)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-99/1000")
	f.Add("bytes 5-5/*")
	f.Add("bytes 18446744073709551615-3/1")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := registry.ParseContentRange(s)
		if err != nil {
			if !errors.Is(err, blockfmt.ErrCorrupt) {
				t.Errorf("error %v", err)
			}
			return
		}
		if first < 0 || last < first || (total != -1 && last >= total) {
			t.Errorf("%q: %d-%d/%d", s, first, last, total)
		}
	})
}
