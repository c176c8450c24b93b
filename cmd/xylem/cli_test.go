package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/xylem-project/xylem/blockfmt"
)

// commands are what DESIGN's contract names, with a command line for each that is valid as far as arguments go.
var commands = []string{
	"convert", "inspect", "mount", "unmount", "pull", "run", "agent", "proxy", "doctor", "cache", "cache ls", "cache gc", "cache scrub", "version",
	"images", "key", "record", "record start", "record stop", "setup", "setup containerd",
}

func walk(cmd *cobra.Command, visit func(path []string, cmd *cobra.Command)) {
	var step func(path []string, cmd *cobra.Command)
	step = func(path []string, cmd *cobra.Command) {
		visit(path, cmd)
		for _, c := range cmd.Commands() {
			step(append(slices.Clone(path), c.Name()), c)
		}
	}
	step(nil, cmd)
}

func TestCommandsExist(t *testing.T) {
	var got []string
	walk(newRoot(stdio{}), func(path []string, _ *cobra.Command) { got = append(got, strings.Join(path, " ")) })
	for _, want := range commands {
		if !slices.Contains(got, want) {
			t.Errorf("there is no command %q", want)
		}
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	walk(newRoot(stdio{}), func(path []string, cmd *cobra.Command) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			r := do(t, append(path, "--help")...)
			if r.code != 0 || r.stderr != "" || !strings.Contains(r.out, "Usage:\n  "+cmd.CommandPath()) {
				t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.out, r.stderr)
			}
			if cmd.Short == "" {
				t.Error("no short help")
			}
			cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" || !strings.Contains(r.out, "--"+f.Name) {
					t.Errorf("flag --%s is not explained in %q", f.Name, r.out)
				}
			})
		})
	})
}

// Every command whose RunE prints data has --output; those that stream or print nothing do not.
func TestOutputFlagWhereDataIsPrinted(t *testing.T) {
	without := []string{"", "unmount", "run", "agent", "proxy", "cache", "record", "record start", "record stop", "key", "setup",
		"scheduler", "scheduler token", "scheduler token revoke", "scheduler revoke", "scheduler pardon", "scheduler key", "scheduler key revoke", "scheduler ca",
		"fn", "fn alias", "fn alias set", "fn alias delete", "fn delete", "fn invoke", "up"}
	walk(newRoot(stdio{}), func(path []string, cmd *cobra.Command) {
		name := strings.Join(path, " ")
		if has := cmd.Flags().Lookup("output") != nil; has == slices.Contains(without, name) {
			t.Errorf("%q: has --output: %v", name, has)
		}
	})
}

func TestUsageErrors(t *testing.T) {
	tests := []struct {
		args string
		word string
	}{
		{"frobnicate", "unknown command"},
		{"--frobnicate", "unknown flag"},
		{"version extra", "extra"},
		{"version --output yaml", "text or json"},
		{"--log-level loud version", "loud"},
		{"cache", "subcommands"},
		{"cache ls extra", "extra"},
		{"record", "subcommands"},
		{"convert", "accepts 1 arg"},
		{"convert 127.0.0.1:1/x", "--push or --out"},
		{"convert oci:dir:tag --push", "--to REPOSITORY"},
		{"convert 127.0.0.1:1/x --push --unsigned --key k", "contradict"},
		{"inspect", "accepts 1 arg"},
		{"inspect 127.0.0.1:1/x --platform a/b/c/d/e", "--platform"},
		{"mount onlyone", "accepts 2 arg"},
		{"unmount", "accepts 1 arg"},
		{"pull", "accepts 1 arg"},
		{"run", "at least 1 arg"},
		{"run --pull sometimes x", "always, missing or never"},
		{"run --env NOVALUE x", "KEY=VALUE"},
		{"run --tty x", "terminal"},
		{"agent extra", "extra"},
		{"doctor extra", "extra"},
		{"setup", "subcommands"},
		{"setup containerd extra", "extra"},
		{"setup containerd --snapshotter maybe", "on or off"},
		{"setup containerd --containerd-version new", "--containerd-version"},
		{"setup containerd --containerd-version 1.5", "too old"},
		{"setup containerd --registry https://docker.io", "host:port"},
		{"setup containerd --registry ../x", "host:port"},
		{"setup containerd --registry x/y", "host:port"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			do(t, strings.Fields(test.args)...).checkFailed(t, 2, test.word, "; see 'xylem")
		})
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("neither a key nor a profile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		say  []string
	}{
		{"images", []string{"no agent answers", "xylem agent"}},
		{"cache ls", []string{"no agent answers"}},
		{"cache gc", []string{"no agent answers"}},
		{"cache scrub", []string{"no agent answers"}},
		{"record start x", []string{"no agent answers"}},
		{"record stop x", []string{"no agent answers"}},
		{"mount x /", []string{"no agent answers"}},
		{"mount x /does/not/exist", []string{"/does/not/exist", "make the directory"}},
		{"unmount /mnt", []string{"no agent answers"}},
		{"pull x --address /does/not/exist", []string{"/does/not/exist", "--address"}},
		{"run --address /does/not/exist x", []string{"/does/not/exist", "--address"}},
		{"inspect 127.0.0.1:1/x", []string{"127.0.0.1:1", "reachable"}},
		{"inspect oci:/does/not/exist:x", []string{"/does/not/exist"}},
		{"convert 127.0.0.1:1/x --push", []string{"127.0.0.1:1", "reachable"}},
		{"convert oci:/does/not/exist:x --out " + t.TempDir(), []string{"/does/not/exist", "check the name"}},
		{"convert 127.0.0.1:1/x --push --key " + file, []string{file, "PRIVATE KEY", "xylem key"}},
		{"convert 127.0.0.1:1/x --push --profile " + file, []string{file, "line 1", "xylem record"}},
		{"--config /does/not/exist agent", []string{"/does/not/exist", "docs/operations.md"}},
		{"setup containerd --containerd-config " + file, []string{file, "line 1", "nothing was changed"}},
		{"setup containerd --containerd /does/not/exist --containerd-config /does/not/exist", []string{"/does/not/exist", "--containerd-version"}},
		{"--config " + file + " agent", []string{file, "line 1"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			do(t, strings.Fields(test.args)...).checkFailed(t, 1, test.say...)
		})
	}
}

func TestVersion(t *testing.T) {
	var v map[string]string
	r := do(t, "version", "--output", "json")
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	if v["version"] != version || v["erofsImageSpec"] != blockfmt.SpecRevision {
		t.Errorf("got %v", v)
	}
	if r := do(t, "version"); r.code != 0 || !strings.Contains(r.out, "xylem") || !strings.Contains(r.out, version) {
		t.Errorf("got %v", r)
	}
}

func TestNoArgumentsShowHelp(t *testing.T) {
	if r := do(t); r.code != 0 || !strings.Contains(r.out, "convert") {
		t.Errorf("got %v", r)
	}
}

func TestErrorLine(t *testing.T) {
	tests := []struct {
		err  error
		code int
		line string
	}{
		{processExit(7), 7, ""},
		{fmt.Errorf("cleaned up: %w", processExit(7)), 7, ""},
		{silent{errors.New("x")}, 1, ""},
		{errors.New("one\ntwo\r\nthree"), 1, "xylem x: one, two, three"},
		{usageError{errors.New("bad")}, 2, "xylem x: bad; see 'xylem x --help'"},
		{advise(usageError{errors.New("bad")}, "do %s", "this"), 2, "xylem x: bad; do this"},
		{fmt.Errorf("outer: %w", advise(errors.New("inner"), "inner advice")), 1, "xylem x: outer: inner; inner advice"},
		{advise(advise(errors.New("inner"), "inner advice"), "outer advice"), 1, "xylem x: inner; inner advice"},
		{fmt.Errorf("write: %w", syscall.ENOSPC), 1, "xylem x: write: no space left on device; free disk space and run it again"},
		{fmt.Errorf("get: %w", blockfmt.ErrDenied), 1, "xylem x: get: denied; log in to the registry (docker login or skopeo login), or trust the converter's key"},
	}
	for _, test := range tests {
		if got := errorLine("xylem x", test.err); got != test.line {
			t.Errorf("%v: got %q, want %q", test.err, got, test.line)
		}
		if got := exitCode(test.err); got != test.code {
			t.Errorf("%v: exit code %d, want %d", test.err, got, test.code)
		}
	}
	if advise(nil, "x") != nil {
		t.Error("advice on no error makes one")
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1024 KiB", 40 << 30: "40 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

// An interrupt ends a command that waits for a registry, with one line.
func TestInterrupted(t *testing.T) {
	for _, args := range [][]string{{"convert", "", "--push"}, {"inspect", ""}} {
		t.Run(args[0], func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			stop := make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				interrupt()
				select {
				case <-stop:
				case <-r.Context().Done():
				}
			}))
			defer server.Close()
			defer close(stop)
			args[1] = strings.TrimPrefix(server.URL, "http://") + "/image"
			doWith(ctx, t, "", args...).checkFailed(t, 1, strings.TrimPrefix(server.URL, "http://"), "interrupted")
		})
	}
}
