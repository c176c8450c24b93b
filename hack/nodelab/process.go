package nodelab

import (
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

// process is a program that runs beside the lab and ends with it.
type process struct {
	name   string
	log    string // file of its stdout and stderr
	cmd    *exec.Cmd
	exited chan struct{} // closed once the process is gone and err is set
	err    error
}

// startProcess runs cmd in a process group of its own, so that an interrupt at the terminal leaves it to stop. The kernel
// ends it if we die without having called stop.
func startProcess(log string, cmd *exec.Cmd) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p := &process{name: filepath.Base(cmd.Path), log: log, cmd: cmd, exited: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process and waits for it. Stopping one that has ended by itself reports how.
func (p *process) stop() error {
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
