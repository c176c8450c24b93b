package fuse_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/fuse"
	"github.com/xylem-project/xylem/fuse/fusetest"
)

// serveEnv makes the test binary serve an empty FUSE mount on this directory until its standard input ends.
const serveEnv = "XYLEM_SERVE_FUSE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		if err := serveUntilEOF(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func serveUntilEOF(dir string) error {
	s, err := fuse.Mount(dir, fuse.Config{})
	if err != nil {
		return err
	}
	fmt.Println("serving")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return s.Close()
}

// mount serves an empty directory and, when the test ends, checks that nothing stays behind.
func mount(t testing.TB, cfg fuse.Config) *fuse.Server {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { fusetest.AssertUnmounted(t, dir) })
	s, err := fuse.Mount(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// add serves b as blob id under the name "blob-<id>" and returns its path.
func add(t testing.TB, s *fuse.Server, id uint64, b fuse.Blob) string {
	t.Helper()
	name := fmt.Sprintf("blob-%d", id)
	if err := s.Add(id, name, b); err != nil {
		t.Fatal(err)
	}
	return s.Path(name)
}

// logBuffer collects log lines.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// lines returns the lines at level that contain text.
func (l *logBuffer) lines(level slog.Level, text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, "level="+level.String()) && strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func newLog() (*slog.Logger, *logBuffer) {
	l := &logBuffer{}
	return slog.New(slog.NewTextHandler(l, nil)), l
}
