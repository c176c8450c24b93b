package erofs_test

import (
	"log/slog"
	"testing"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/erofs"
)

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestTreeIsTheSameInAllWays(t *testing.T) {
	im := newImage(t, 3)
	want := im.expect()
	for _, way := range erofs.Ways() {
		t.Run(way.String(), func(t *testing.T) {
			spec, _ := im.serve(t, im.blobs(t), fuse.Config{Log: testLog(t)})
			spec.Way = way
			m := mount(t, spec)
			assertListing(t, list(t, m.Target()), want)
		})
	}
}
