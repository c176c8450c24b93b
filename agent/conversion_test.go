package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/convert"
	"github.com/xylem-project/xylem/scheduler/api"
)

func TestConverterWithTheLease(t *testing.T) {
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.add(w.origin, w.source)
		w.ends()
		w.expect(true, true)
		told := w.ledger.reports()
		if len(told) != 1 || told[0].Image == "" || told[0].Source != w.source || told[0].Agent.ID != "me" || told[0].Pushed != "" {
			w.t.Fatalf("reported %+v", told)
		}
		manifest, err := layout{w.layout(w.source)}.Manifest(w.t.Context(), told[0].Image)
		must(w.t, err)
		must(w.t, blockfmt.VerifySignature(manifest, publicOf(w.key)))
	})
}

// While another agent converts it is asked now and then, and what it made is looked for at the next pull.
func TestConverterAsksAfterOthers(t *testing.T) {
	inBubble(t, states(api.ConversionTheirs, api.ConversionTheirs, api.ConversionTheirs, api.ConversionDone), func(w *workshop) {
		w.add(w.origin, w.source)
		w.add(w.origin, w.source)
		if took := w.ends(); took != 3*w.again {
			w.t.Errorf("it took %v, want %v", took, 3*w.again)
		}
		w.expect(false, false)
		if n := w.ledger.questions(); n != 4 || w.found != 1 || len(w.ledger.reports()) != 0 {
			w.t.Errorf("asked %d times, found %d times", n, w.found)
		}
	})
}

// Without an answer nobody converts: there may be another agent that does.
func TestConverterWithoutSchedulers(t *testing.T) {
	l := states(api.ConversionYours)
	l.err = api.ErrUnreachable
	inBubble(t, l, func(w *workshop) {
		w.add(w.origin, w.source)
		time.Sleep(5 * time.Minute)
		w.expect(false, false)
		w.ledger.set(func(l *ledger) { l.err = nil })
		w.ends()
		w.expect(true, true)
	})
	inBubble(t, &ledger{err: api.ErrUnreachable}, func(w *workshop) {
		w.add(w.origin, w.source)
		if took := w.ends(); took < jobPatience || took > jobPatience+w.again {
			w.t.Errorf("given up after %v, want %v", took, jobPatience)
		}
	})
}

// A conversion whose lease is lost is given up, and the other agent's result waited for.
func TestConverterLosesTheLease(t *testing.T) {
	inBubble(t, states(api.ConversionYours, api.ConversionYours, api.ConversionTheirs, api.ConversionDone), func(w *workshop) {
		w.content.hold = make(chan struct{})
		w.add(w.origin, w.source)
		if took := w.ends(); took != 2*renewEvery+w.again {
			w.t.Errorf("it took %v", took)
		}
		w.expect(false, false)
		if told := w.ledger.reports(); len(told) != 0 {
			w.t.Errorf("reported what is another's: %+v", told)
		}
	})
	l := states(api.ConversionYours, api.ConversionDone)
	l.refuse = fmt.Errorf("told: %w", api.ErrNoLease)
	inBubble(t, l, func(w *workshop) { // found out at the end only
		w.add(w.origin, w.source)
		w.ends()
		w.expect(false, false)
	})
}

// A result is told again when no scheduler heard it; it is of no use if none does.
func TestConverterIsNotHeard(t *testing.T) {
	for name, away := range map[string]time.Duration{"for a moment": 3 * time.Second, "for long": time.Minute} {
		t.Run(name, func(t *testing.T) {
			l := states(api.ConversionYours)
			l.refuse = api.ErrUnreachable
			inBubble(t, l, func(w *workshop) {
				w.add(w.origin, w.source)
				for len(l.reports()) == 0 {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(away)
				l.set(func(l *ledger) { l.refuse = nil })
				w.ends()
				heard := away < tellPatience
				w.expect(heard, heard)
			})
		})
	}
}

// Schedulers that know nothing of conversions are not asked again and again.
func TestConverterWithOldSchedulers(t *testing.T) {
	inBubble(t, &ledger{err: api.ErrUnknown}, func(w *workshop) {
		w.add(w.origin, w.source)
		if took := w.ends(); took != 0 || !strings.Contains(w.log.String(), "older") {
			w.t.Errorf("given up after %v", took)
		}
	})
}

// A lease is renewed as long as the conversion takes.
func TestConverterRenewsTheLease(t *testing.T) {
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.content.hold = make(chan struct{})
		w.add(w.origin, w.source)
		time.Sleep(5*api.ConversionLease + time.Second)
		if n := w.ledger.questions(); n != 1+5*int(api.ConversionLease/renewEvery) {
			w.t.Errorf("asked %d times in %v", n, 5*api.ConversionLease)
		}
		close(w.content.hold)
		w.ends()
		w.expect(true, true)
	})
}

// What fails for this node only is left to others; what fails for all is said.
func TestConverterFails(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		says string // the report's reason
	}{
		"denied":  {fmt.Errorf("401: %w", blockfmt.ErrDenied), ""},
		"missing": {fmt.Errorf("404: %w", blockfmt.ErrNotFound), ""},
		"corrupt": {fmt.Errorf("layer: %w", blockfmt.ErrCorrupt), "layer"},
		"long":    {fmt.Errorf("%s: %w", strings.Repeat("x", 1000), blockfmt.ErrUnsupported), "xxx"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, states(api.ConversionYours), func(w *workshop) {
				w.content.err = c.err
				w.add(w.origin, w.source)
				w.pause()
				told := w.ledger.reports()
				if len(told) != 1 || told[0].Image != "" || !strings.Contains(told[0].Failed, c.says) || (told[0].Failed == "") != (c.says == "") || len(told[0].Failed) > maxReason {
					t.Errorf("reported %+v, want a reason with %q", told, c.says)
				}
				w.expect(false, false)
				w.add(w.origin, w.source)
				w.pause()
				want := 1 // it is left to others; of what failed for all the schedulers know
				if c.says != "" {
					want = 2
				}
				if n := w.ledger.questions(); n != want {
					t.Errorf("asked %d times in two pulls, want %d", n, want)
				}
			})
		})
	}
}

// An image that the node may not read itself is converted once a client has brought it here, and not waited for without end.
func TestConverterWaitsForClients(t *testing.T) {
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.content.err = fmt.Errorf("401: %w", blockfmt.ErrDenied)
		w.queue(job{origin: w.origin, source: w.source, proxied: true})
		time.Sleep(clientPatience / 2)
		w.stop() // the workshop's content is its own again
		w.expect(false, false)
		for _, told := range w.ledger.reports() {
			if told.Failed != "" || told.Image != "" {
				w.t.Errorf("reported %+v", told)
			}
		}
		if n := len(w.ledger.reports()); n < 2 {
			w.t.Errorf("tried %d times", n)
		}
	})
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.content.err = fmt.Errorf("401: %w", blockfmt.ErrDenied)
		w.queue(job{origin: w.origin, source: w.source, proxied: true})
		if took := w.ends(); took < clientPatience || took > clientPatience+w.again {
			w.t.Errorf("waited %v, want %v", took, clientPatience)
		}
	})
}

// A converter that ends in the middle gives the lease back, and nobody waits for it.
func TestConverterEnds(t *testing.T) {
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.content.hold = make(chan struct{})
		w.add(w.origin, w.source)
		synctest.Wait()
		w.wait = time.Hour
		ended := make(chan bool)
		go func() { ended <- w.await(w.t.Context(), w.source) }()
		synctest.Wait()
		w.stop()
		<-ended
		if told := w.ledger.reports(); len(told) != 1 || told[0].Image != "" || told[0].Failed != "" {
			w.t.Errorf("reported %+v", told)
		}
		w.expect(false, false)
	})
}

// A pull waits for its conversion, from the first on, as long as it may.
func TestPullsWaitForConversions(t *testing.T) {
	l := states(api.ConversionTheirs)
	inBubble(t, l, func(w *workshop) {
		w.wait, w.again = 30*time.Second, time.Second
		if w.await(w.t.Context(), w.source) {
			w.t.Error("there is a conversion of an image that nobody pulled")
		}
		w.add(w.origin, w.source)
		begin := time.Now()
		if w.await(w.t.Context(), w.source) || time.Since(begin) != w.wait {
			w.t.Errorf("waited %v, want %v", time.Since(begin), w.wait)
		}
		if w.await(w.t.Context(), w.source) || time.Since(begin) != w.wait {
			w.t.Error("the next layer waits again")
		}
	})
	inBubble(t, states(api.ConversionTheirs, api.ConversionTheirs, api.ConversionDone), func(w *workshop) {
		w.wait, w.again = 30*time.Second, time.Second
		w.add(w.origin, w.source)
		begin := time.Now()
		if !w.await(w.t.Context(), w.source) || time.Since(begin) != 2*time.Second {
			w.t.Errorf("waited %v for what took 2 s", time.Since(begin))
		}
	})
}

// What has a block image already is not converted, unless that is lost.
func TestConverterOfKnownImages(t *testing.T) {
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.known = true
		w.add(w.origin, w.source)
		w.ends()
		w.expect(false, false)
		if n := w.ledger.questions(); n != 0 {
			w.t.Errorf("schedulers were asked %d times", n)
		}
	})
	inBubble(t, states(api.ConversionYours), func(w *workshop) {
		w.known = true
		w.remake(origin{Ref: w.origin.Ref, Repository: w.origin.Repository, Cluster: w.source})
		w.ends()
		w.expect(true, true)
	})
}

func TestConversionsThatWaitAreBounded(t *testing.T) {
	inBubble(t, states(api.ConversionTheirs), func(w *workshop) {
		for i := range 2 * maxJobs {
			w.add(w.origin, digest.FromString(fmt.Sprint(i)))
		}
		w.converter.mu.Lock()
		n := len(w.jobs)
		w.converter.mu.Unlock()
		if n != maxJobs || !strings.Contains(w.log.String(), "too many wait") {
			w.t.Errorf("%d jobs wait, want %d, and a word of it", n, maxJobs)
		}
	})
}

// What is pushed need not be kept for others; a push that is refused is no failure.
func TestConverterPushes(t *testing.T) {
	for name, refused := range map[string]error{"pushed": nil, "refused": fmt.Errorf("403: %w", blockfmt.ErrDenied)} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, states(api.ConversionYours), func(w *workshop) {
				w.push = func(context.Context, origin, *convert.Result) error { return refused }
				w.add(w.origin, w.source)
				w.ends()
				w.expect(true, refused != nil)
				if told := w.ledger.reports(); len(told) != 1 || (told[0].Pushed == w.origin.Repository) != (refused == nil) {
					t.Errorf("reported %+v", told)
				}
				if n := strings.Count(w.log.String(), "not pushed"); (n == 1) != (refused != nil) {
					t.Errorf("%d lines on the push", n)
				}
			})
		})
	}
}

func TestIsImage(t *testing.T) {
	layers := `"layers":[{}]`
	for text, want := range map[string]bool{
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"},` + layers + `}`:                                                true,
		`{"config":{"mediaType":"application/vnd.docker.container.image.v1+json"},` + layers + `}`:                                          true,
		`{"config":{"mediaType":"application/vnd.oci.image.config.v1+json"}}`:                                                               false,
		`{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},` + layers + `}`:                                                false,
		`{"artifactType":"` + blockfmt.ArtifactType + `","config":{"mediaType":"application/vnd.oci.image.config.v1+json"},` + layers + `}`: false,
		`{"manifests":[{}]}`: false,
		`not JSON`:           false,
	} {
		if got := isImage([]byte(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// Layouts that nobody asked for in a long time go, unless this node itself uses them.
func TestHoldingsEnd(t *testing.T) {
	h := newHoldings(t.TempDir(), nil, slog.New(slog.DiscardHandler))
	young, old, used := digest.FromString("young"), digest.FromString("old"), digest.FromString("used")
	h.uses = func(layout string) bool { return layout == h.layout(used) }
	for _, d := range []digest.Digest{young, old, used} {
		must(t, os.MkdirAll(h.layout(d), 0o700))
		must(t, h.keep(d))
	}
	long := time.Now().Add(-heldIdle - time.Minute)
	for _, d := range []digest.Digest{old, used} {
		must(t, os.Chtimes(filepath.Join(h.layout(d), heldFile), long, long))
	}
	if n := h.prune(); n != 1 {
		t.Errorf("%d are kept, want 1", n)
	}
	left := func(d digest.Digest) bool { _, err := os.Stat(h.layout(d)); return err == nil }
	if !left(young) || left(old) || !left(used) || isHeld(h.layout(used)) || !isHeld(h.layout(young)) {
		t.Error("the wrong ones are left")
	}
}
