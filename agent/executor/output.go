package executor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// output is what an instance prints, on its way through two FIFOs from containerd's shim. Two goroutines read it.
type output struct {
	dir            string
	stdout, stderr string // paths
	invocation     atomic.Pointer[string]
	tail           tail

	readers sync.WaitGroup
	ended   chan struct{} // closed when both streams have ended
	files   []*os.File
	writers []*os.File // keep the streams open until the shim has opened them
}

// openOutput makes the FIFOs in dir, which it creates, and reads them until they end or close is called.
func openOutput(dir, instance string, version int, log *functionLog) (*output, error) {
	o := &output{dir: dir, stdout: filepath.Join(dir, "stdout"), stderr: filepath.Join(dir, "stderr"), ended: make(chan struct{})}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	for path, stream := range map[string]string{o.stdout: "stdout", o.stderr: "stderr"} {
		if err := o.open(path, &lineWriter{log: log, version: version, instance: instance, stream: stream, invocation: &o.invocation}); err != nil {
			return nil, errors.Join(err, o.close())
		}
	}
	go func() {
		o.readers.Wait()
		close(o.ended)
	}()
	return o, nil
}

func (o *output) open(path string, to *lineWriter) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return err
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	o.files = append(o.files, r)
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	o.writers = append(o.writers, w)
	o.readers.Go(func() { o.read(r, to) })
	return nil
}

// outputBuffers are shared: an instance that prints nothing holds none.
var outputBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// read copies a stream until it ends.
func (o *output) read(f *os.File, to *lineWriter) {
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	ended := false
	for !ended && err == nil {
		err = conn.Read(func(fd uintptr) bool {
			buf := outputBuffers.Get().(*[64 << 10]byte)
			defer outputBuffers.Put(buf)
			n, err := unix.Read(int(fd), buf[:])
			if err == unix.EAGAIN {
				return false
			}
			if n > 0 {
				o.tail.write(buf[:n])
				to.write(buf[:n], time.Now())
			}
			ended = n == 0 || err != nil && err != unix.EINTR
			return true
		})
	}
	if len(to.partial) > 0 {
		to.flush(time.Now())
	}
}

// connected says that the shim has opened the streams, which end with it now.
func (o *output) connected() error {
	var errs []error
	for _, w := range o.writers {
		errs = append(errs, w.Close())
	}
	o.writers = nil
	return errors.Join(errs...)
}

// begin notes an invocation: id, or "" if several run.
func (o *output) begin(id string) {
	if id == "" {
		o.invocation.Store(nil)
		return
	}
	o.invocation.Store(&id)
	o.tail.reset()
}

const (
	// settleTime without output means that what was printed has come through the pipes, settleMax bounds the wait for it.
	settleTime = 4 * time.Millisecond
	settleMax  = 100 * time.Millisecond
)

// settle waits until what the program has printed by now has probably arrived.
func (o *output) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	for before := int64(-1); ctx.Err() == nil; {
		now := o.tail.written()
		if now == before {
			return
		}
		before = now
		wait(ctx, settleTime)
	}
}

// drained waits until both streams have ended, at most for the time given: somebody who inherited them may keep them open.
func (o *output) drained(limit time.Duration) {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.ended:
	case <-t.C:
	}
}

// close ends the readers and removes the FIFOs.
func (o *output) close() error {
	errs := []error{o.connected()}
	for _, f := range o.files {
		errs = append(errs, f.Close())
	}
	o.readers.Wait()
	return errors.Join(append(errs, os.RemoveAll(o.dir))...)
}
