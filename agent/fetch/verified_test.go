package fetch

import (
	"context"
	"testing"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// TestVerifiedIsKnownThroughTheStack: nobody may skip hashing because a decorator forgot, or invented, that its blocks are
// verified.
func TestVerifiedIsKnownThroughTheStack(t *testing.T) {
	raw := blockfmt.SourceFunc(func(context.Context, blockfmt.Ref) ([]byte, error) { return nil, blockfmt.ErrNotFound })
	decorators := map[string]func(blockfmt.Source) blockfmt.Source{
		"retry":    func(s blockfmt.Source) blockfmt.Source { return Retry(s, RetryConfig{}) },
		"deadline": func(s blockfmt.Source) blockfmt.Source { return Deadline(s, time.Second) },
		"limited":  func(s blockfmt.Source) blockfmt.Source { return Limited(s, 1) },
		"fallback": func(s blockfmt.Source) blockfmt.Source { return Fallback(Verified(raw), s) },
		"coalesced": func(s blockfmt.Source) blockfmt.Source {
			c := Coalesced(s)
			t.Cleanup(func() { c.Close() })
			return c
		},
	}
	for name, decorate := range decorators {
		if blockfmt.IsVerified(decorate(raw)) {
			t.Errorf("%s claims that an unverified source is verified", name)
		}
		if !blockfmt.IsVerified(decorate(Verified(raw))) {
			t.Errorf("%s hides that its source is verified", name)
		}
	}
	if !blockfmt.IsVerified(Cached(new(blocktest.Memory), raw)) {
		t.Error("what has gone through a store is verified")
	}
}
