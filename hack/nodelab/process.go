package nodelab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopTimeout is how long a program has between SIGTERM and SIGKILL.
const stopTimeout = 15 * time.Second

// Process is a program that runs beside the lab and ends with it.
type Process struct {
	name   string
	log    string // file of its stdout and stderr
	cmd    *exec.Cmd
	exited chan struct{} // closed once the process is gone and err is set
	err    error
}

// StartProcess runs cmd at a place, in a process group of its own, so that an interrupt at the terminal leaves it to Stop. The
// kernel ends it if we die without having called Stop. Its output is appended to the file log.
func StartProcess(place Place, log string, cmd *exec.Cmd) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &Process{name: filepath.Base(cmd.Path), log: log, cmd: cmd, exited: make(chan struct{})}
	if err := place.Start(cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// Pid of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Wait waits until the process has ended, whoever ended it, or ctx ends.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s (process %d) still runs: %w", p.name, p.Pid(), ctx.Err())
	}
}

// Kill ends the process like a crash, by SIGKILL, and waits for it.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	<-p.exited
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Stop ends the process and waits for it. Stopping one that has ended by itself reports how.
func (p *Process) Stop() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s ended by itself: %v; its log ends with:\n%s", p.name, p.err, tail(p.log))
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
	}
	err := p.cmd.Process.Kill()
	<-p.exited
	return errors.Join(fmt.Errorf("%s ignored SIGTERM for %v", p.name, stopTimeout), err)
}

// tail returns the end of a log file for error messages.
func tail(file string) string {
	const size = 4 << 10
	text, _ := os.ReadFile(file)
	return string(text[max(0, len(text)-size):])
}
