package nodelab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// registry is Debian's docker-registry on a loopback port of the kernel's choice.
type registry struct {
	process *process
	host    string // host:port
}

const registryConfig = `version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0", secret: lab}
`

// startRegistry keeps the registry's blobs in storage and its configuration and log in dir.
func startRegistry(ctx context.Context, dir, storage string) (*registry, error) {
	config := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, storage), 0o600); err != nil {
		return nil, err
	}
	p, err := startProcess(filepath.Join(dir, "registry.log"), exec.Command("docker-registry", "serve", config))
	if err != nil {
		return nil, err
	}
	r := &registry{process: p}
	err = p.poll(ctx, 20*time.Second, func() error {
		r.host, err = listeningOn(p.log)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.stop())
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
