// Package registrytest runs a real registry for the tests of everything that reads one: Debian's docker-registry, which has no referrers
// API and knows neither pages of tags nor single-request uploads.
package registrytest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const config = `version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: "127.0.0.1:0", secret: test}
`

// startTimeout bounds the time until the registry listens.
const startTimeout = 20 * time.Second

// Start runs an empty registry on loopback until the test ends and returns its host:port.
func Start(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, fmt.Appendf(nil, config, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", path)
	cmd.Stdout, cmd.Stderr = in, in
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = in.Close() // the process has its own
	if err != nil {
		_ = out.Close()
		t.Fatalf("docker-registry: %v", err)
	}
	l := log{host: make(chan string, 1), ended: make(chan struct{})}
	go l.read(out)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-l.ended
	})
	select {
	case host := <-l.host:
		return host
	case <-l.ended:
	case <-time.After(startTimeout):
		_ = cmd.Process.Kill()
		<-l.ended
	}
	t.Fatalf("docker-registry does not listen: %s", l.text.String())
	return ""
}

// log is what the registry prints.
type log struct {
	host  chan string   // where it listens
	ended chan struct{} // closed once text is complete
	text  strings.Builder
}

// read reads until the registry ends, so that it never waits for a reader.
func (l *log) read(from io.ReadCloser) {
	defer close(l.ended)
	defer from.Close()
	for lines := bufio.NewScanner(from); lines.Scan(); {
		fmt.Fprintln(&l.text, lines.Text())
		var entry struct {
			Message string `json:"msg"`
		}
		_ = json.Unmarshal(lines.Bytes(), &entry) // not all lines are JSON
		if host, ok := strings.CutPrefix(entry.Message, "listening on "); ok {
			select {
			case l.host <- host:
			default: // it says so once
			}
		}
	}
}
