package nodelab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// registry is Debian's docker-registry.
type registry struct {
	process *Process
	host    string // host:port
}

const registryConfig = `version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q, secret: lab}
`

// startRegistry runs it at an address of the lab's place.
func (l *Lab) startRegistry(ctx context.Context, listen string) (*registry, error) {
	config := l.Path("registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, l.storage, listen), 0o600); err != nil {
		return nil, err
	}
	p, err := StartProcess(l.place, l.Path("registry.log"), exec.Command("docker-registry", "serve", config))
	if err != nil {
		return nil, err
	}
	r := &registry{process: p}
	err = p.Poll(ctx, 20*time.Second, func() error {
		r.host, err = listeningOn(p.log)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return r, nil
}

// listeningOn finds the registry's address in its log.
func listeningOn(log string) (string, error) {
	text, err := os.ReadFile(log)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(text) {
		var entry struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal(line, &entry) != nil {
			continue // a line that is being written
		}
		if host, ok := strings.CutPrefix(entry.Msg, "listening on "); ok {
			return host, nil
		}
	}
	return "", errors.New("it does not listen yet")
}
