package scheduler

import (
	"context"
	"os"

	"github.com/xylem-project/xylem/scheduler/store"
)

// RunOn is Run on a store that others may share.
func RunOn(ctx context.Context, cfg Config, s store.Store) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	for _, dir := range []string{cfg.Root, cfg.State} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return runOn(ctx, cfg, s, nil)
}
