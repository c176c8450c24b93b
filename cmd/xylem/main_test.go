package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// asXylem in the environment makes the test binary the xylem binary, so that tests run real processes of it.
const asXylem = "XYLEM_TEST_AS_XYLEM"

func TestMain(m *testing.M) {
	if os.Getenv(asXylem) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// xylem returns a command that runs a process of xylem.
func xylem(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), asXylem+"=1")
	return cmd
}

// result is what a command line did.
type result struct {
	code        int
	out, stderr string
}

// do runs a command line in this process, with root and state directories of its own unless it names others.
func do(t *testing.T, args ...string) result {
	t.Helper()
	return doWith(t.Context(), t, "", args...)
}

func doWith(ctx context.Context, t *testing.T, stdin string, args ...string) result {
	t.Helper()
	if !strings.Contains(strings.Join(args, " "), "--root") {
		dir := t.TempDir()
		args = append([]string{"--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state")}, args...)
	}
	var out, stderr strings.Builder
	code := run(ctx, stdio{strings.NewReader(stdin), &out, &stderr}, args)
	return result{code, out.String(), stderr.String()}
}

// checkFailed fails the test unless the command failed with the code and exactly one line that has all the words.
func (r result) checkFailed(t *testing.T, code int, words ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d (stderr %q)", r.code, code, r.stderr)
	}
	if strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "xylem") {
		t.Errorf("stderr is %q, want one line that starts with xylem", r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			t.Errorf("stderr is %q, without %q", r.stderr, w)
		}
	}
}
