package cache_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/xylem-project/xylem/agent/cache"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
)

// crashDirEnv makes the test binary a process that uses the cache there until it is killed.
const crashDirEnv = "XYLEM_CACHE_CRASH_DIR"

// crashBlob is what that process works with. Small blocks: the more often it is between two steps the better.
func crashBlob() *blocktest.Blob { return blocktest.NewBlob(42, 2<<20, 8<<10) }

// crashChild fills and puts, in random order, and says when it has begun. It never returns.
func crashChild(dir string) {
	blob := crashBlob()
	c, err := cache.Open(cache.Config{Dir: dir, Budget: 1 << 20})
	if err != nil {
		fmt.Println("open:", err)
		os.Exit(3)
	}
	f, err := c.OpenFile(blob.Index, blob, nil)
	if err != nil {
		fmt.Println("open file:", err)
		os.Exit(3)
	}
	for {
		for _, i := range rand.Perm(blob.Index.Len()) {
			ref := blob.Index.Ref(i)
			err := f.Fill(context.Background(), ref.RawOffset, 2*ref.RawLength)
			if err := errors.Join(err, c.Put(context.Background(), ref, blob.Bytes(ref))); err != nil {
				fmt.Println(err)
				os.Exit(3)
			}
			fmt.Println("going on")
		}
	}
}

// TestKill kills a process that fills a cache, again and again at random moments: whatever it leaves, the next one reads
// right bytes only, and what was said to be complete is.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	blob := crashBlob()
	logs := &logBook{}
	kept := false
	for round := range 10 {
		killAfter(t, dir, 1+rand.IntN(blob.Index.Len()))
		cfg := cache.Config{Dir: dir, Logger: logs.logger()}
		count := session(t, cfg, blob, func(c *cache.Cache, f *cache.File) {
			for _, ref := range blob.Refs() {
				if got, err := c.Block(t.Context(), ref); err == nil && string(got) != string(blob.Bytes(ref)) {
					t.Errorf("%v: wrong bytes", ref)
				}
			}
			if f.Complete() {
				if got, err := os.ReadFile(f.Path()); err != nil || string(got) != string(blob.Raw) {
					t.Errorf("complete file is not what it should be: %d bytes, %v", len(got), err)
				}
			}
			checkRange(t, f, blob, 0, len(blob.Raw))
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if round%4 == 3 { // begin anew
				c.GC(0)
			}
		})
		kept = kept || count.Total() < blob.Index.Len()
	}
	if w := logs.lines(); len(w) != 0 {
		t.Errorf("kill -9 damaged what had been kept: %q", w)
	}
	if !kept {
		t.Error("nothing that a killed process wrote was ever used: the test does not test")
	}
}

// killAfter runs crashChild and kills it after it said so many lines.
func killAfter(t *testing.T, dir string, lines int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for n := 0; n < lines && in.Scan(); n++ {
		if in.Text() != "going on" {
			t.Errorf("child: %s", in.Text())
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() == 3 {
		t.Errorf("child ended by itself: %v", err)
	}
}
