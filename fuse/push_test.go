package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"runtime"
	"testing"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

// What was pushed is read without asking the blob again, and is what the blob holds.
func TestPushedBytesNeedNoRequest(t *testing.T) {
	for _, procs := range []int{1, runtime.GOMAXPROCS(0)} {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
		s := mount(t, fuse.Config{})
		b := fusetest.NewBlob(t, 2<<20, 1)
		path := add(t, s, 3, b)
		if got := fusetest.Run(t, "dd", "if="+path, "bs=4K", "count=1", "status=none"); !bytes.Equal(got, b.Data[:4096]) { // now the kernel knows it
			t.Fatal("wrong bytes")
		}
		const start, end = 1 << 20, 3 << 19
		if err := b.Fill(t.Context(), start, end-start); err != nil {
			t.Fatal(err)
		}
		if err := s.Push(3, start, end-start); err != nil {
			t.Fatal(err)
		}
		b.OnFill(func(context.Context, int64, int64) error { return errors.New("asked again") })
		if got := fusetest.Run(t, "dd", "if="+path, "bs=256K", "skip=4", "count=2", "status=none"); !bytes.Equal(got, b.Data[start:end]) {
			t.Errorf("%d bytes differ from what was pushed", len(got))
		}
		if out, err := exec.Command("dd", "if="+path, "bs=256K", "skip=6", "count=1", "status=none").Output(); err == nil {
			t.Errorf("%d bytes of what was not pushed", len(out))
		}
	}
}

func TestPushOfNothing(t *testing.T) {
	s := mount(t, fuse.Config{})
	if err := s.Push(9, 0, 4096); err != nil {
		t.Errorf("blob that is not served: %v", err)
	}
	add(t, s, 3, fusetest.NewBlob(t, 4096, 1))
	for _, r := range [][2]int64{{4096, 4096}, {-1, 10}, {1 << 62, 1 << 62}, {0, 0}} {
		if err := s.Push(3, r[0], r[1]); err != nil {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
	}
	if err := s.Push(3, 0, 4096); err == nil {
		t.Error("pushed into a file that the kernel has never seen")
	}
}
