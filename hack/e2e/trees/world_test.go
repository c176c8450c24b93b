package trees

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/hack/lab"
)

func TestMain(m *testing.M) {
	if os.Getenv(strangerVariable) != "" {
		if err := beStranger(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// must is for steps that are not what a test is about.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long anything may take that comes by itself: much longer than it does, because the machine may be busy.
const patience = 90 * time.Second

// poll looks again and again until check succeeds.
func poll(ctx context.Context, timeout time.Duration, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: not after %v: %w", what, timeout, err)
		}
	}
}

// eventually waits for a condition that comes true by itself.
func eventually(t *testing.T, timeout time.Duration, what string, check func() error) {
	t.Helper()
	must(t, poll(t.Context(), timeout, what, check))
}

// The links are slow enough for something to fail before an image of imageBytes has come.
const (
	hosts       = 5
	hostRate    = 100 * lab.Mbit
	originRate  = 80 * lab.Mbit
	imageBytes  = 16 << 20
	readTimeout = 5 * time.Second
)

// up makes a lab that is removed after the test, with nothing left of it.
func up(t *testing.T) *lab.Lab {
	t.Helper()
	return upWith(t, "fill = true\n")
}

// upWith is up for agents with another configuration.
func upWith(t *testing.T, config string) *lab.Lab {
	t.Helper()
	xylem := os.Getenv("XYLEM")
	if xylem == "" {
		xylem = "../../../bin/xylem"
	}
	l, err := lab.Up(t.Context(), lab.Config{
		Hosts: hosts, Link: lab.Link{Up: hostRate, Down: hostRate}, Links: map[string]lab.Link{"registry": {Up: originRate, Down: originRate}},
		Agents: true, AgentConfig: fmt.Sprintf("%sread_timeout = %q\n", config, readTimeout), Scheduler: true, Xylem: xylem, Log: t.Output(),
	})
	must(t, err)
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.State().Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", l.State().Dir, err)
		}
	})
	return l
}
