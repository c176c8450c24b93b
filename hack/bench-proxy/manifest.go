package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/xylem-project/xylem/hack/figures"
)

// manifestPairs is how often a round reads a manifest from the proxy and the registry, in turn.
const manifestPairs = 500

// manifest measures how much longer a manifest takes that the proxy keeps than the registry itself takes, in the median.
func (b *bench) manifest(ctx context.Context) (err error) {
	a, err := b.startAlone(ctx, 1<<20)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	digest, err := a.image.Digest()
	if err != nil {
		return err
	}
	path := "/v2/" + repository + "/manifests/" + digest.String()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	var added, ours, theirs []float64
	for range b.Rounds {
		var proxy, registry []time.Duration
		for range manifestPairs {
			for base, times := range map[string]*[]time.Duration{a.registryURL(): &registry, a.base: &proxy} {
				begin := time.Now()
				resp, err := get(ctx, transport, base+path)
				if err != nil {
					return err
				}
				_, err = discard(resp.Body)
				if err := errors.Join(err, resp.Body.Close()); err != nil {
					return err
				}
				*times = append(*times, time.Since(begin))
			}
		}
		p, r := median(proxy), median(registry)
		ours, theirs, added = append(ours, p), append(theirs, r), append(added, p-r)
	}
	b.Add(figures.Summary("manifest_p50_added_seconds", "s", added), figures.Summary("manifest_p50_seconds", "s", ours),
		figures.Summary("registry_manifest_p50_seconds", "s", theirs))
	return nil
}

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return times[len(times)/2].Seconds()
}
