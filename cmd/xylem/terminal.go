package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/term"
)

// attachTerminal makes stdin raw and keeps the size of the task's terminal equal to ours, until restore is called.
func (a *app) attachTerminal(ctx context.Context, task containerd.Task) (restore func(), err error) {
	file, ok := a.in.(*os.File)
	if !ok {
		return nil, fmt.Errorf("stdin is no terminal")
	}
	fd := int(file.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	var owner sync.WaitGroup
	owner.Go(func() {
		for {
			if width, height, err := term.GetSize(fd); err == nil {
				_ = task.Resize(ctx, uint32(width), uint32(height)) // a wrong size is no reason to end
			}
			select {
			case <-resized:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(resized)
		cancel()
		owner.Wait()
		_ = term.Restore(fd, before)
	}, nil
}
