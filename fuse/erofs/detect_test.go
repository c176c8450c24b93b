package erofs_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/fuse/erofs"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

func TestDetect(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	d := erofs.Detect(t.Context(), dir, testLog(t))
	if d.Way != erofs.WayFile {
		t.Errorf("way %v, want file on Linux 6.12 and later:\n%v", d.Way, d)
	}
	for _, way := range erofs.Ways() {
		if d.Reasons[way] != nil {
			t.Errorf("%v: %v", way, d.Reasons[way])
		}
	}
	assertEmpty(t, dir)
}

func TestDetectSaysWhyNot(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := erofs.Detect(ctx, dir, nil)
	if d.Way != 0 || !errors.Is(d.Reasons[erofs.WayTree], context.Canceled) {
		t.Errorf("cancelled detection chose %v, reasons:\n%v", d.Way, d)
	}
	if lines := strings.Count(d.String(), "\n"); lines != 3 {
		t.Errorf("%d lines for 3 ways:\n%v", lines, d)
	}
	assertEmpty(t, dir)
}

func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left behind: %s", e.Name())
	}
}
