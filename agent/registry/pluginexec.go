package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xylem-project/xylem/blockfmt"
)

const (
	pluginTimeout   = 10 * time.Second // a plugin that takes longer is killed
	maxPluginOutput = 1 << 20          // bytes of an answer
	maxPluginStderr = 4 << 10          // bytes; the first line is for the error
)

// pluginCommand runs a plugin's program.
type pluginCommand struct {
	name, path string
	args, env  []string
	apiVersion string
	timeout    time.Duration
}

// pluginResponse is an answer as it is used here.
type pluginResponse struct {
	scope pluginScope
	life  *time.Duration // nil: the configuration's default
	auth  []pluginAuth
}

func (r *pluginResponse) lifeOr(defaultLife time.Duration) time.Duration {
	if r.life == nil {
		return defaultLife
	}
	return *r.life
}

// pluginAuth are the credentials for the images of a pattern.
type pluginAuth struct {
	key     string
	pattern imagePattern
	cred    Credentials
}

// run asks the plugin for an image. Its errors have the first line of what the plugin wrote to stderr, and nothing of its answer,
// which may hold credentials.
func (c *pluginCommand) run(ctx context.Context, image string) (*pluginResponse, error) {
	stdout, stderr, err := c.exec(ctx, image)
	var response *pluginResponse
	if err == nil {
		response, err = parsePluginResponse(stdout, c.apiVersion)
	}
	if err == nil {
		return response, nil
	}
	if line := firstLine(stderr); line != "" {
		return nil, fmt.Errorf("credential provider plugin %s for %s: %w: %q", c.name, image, err, line)
	}
	return nil, fmt.Errorf("credential provider plugin %s for %s: %w", c.name, image, err)
}

// exec runs the program in a process group of its own, which is killed as a whole when time is up or the answer too long.
func (c *pluginCommand) exec(ctx context.Context, image string) (stdout, stderr []byte, err error) {
	request, err := json.Marshal(map[string]string{"apiVersion": c.apiVersion, "kind": "CredentialProviderRequest", "image": image})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("killed, no answer within %v", c.timeout))
	defer cancel()
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	cmd := exec.CommandContext(ctx, c.path, c.args...)
	cmd.Env, cmd.Stdin = c.env, bytes.NewReader(request)
	out := &boundedBuffer{max: maxPluginOutput, full: func() { kill(fmt.Errorf("killed, answer larger than %d bytes", maxPluginOutput)) }}
	said := &boundedBuffer{max: maxPluginStderr, full: func() {}}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second // for what has left the group and keeps the pipes
	err = cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.data, said.data, err
}

// boundedBuffer keeps the first max bytes that are written, and calls full when there are more.
type boundedBuffer struct {
	data []byte
	max  int
	full func()
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.max-len(b.data))
	b.data = append(b.data, p[:keep]...)
	if keep < len(p) {
		b.full()
	}
	return len(p), nil
}

func firstLine(text []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	return line[:min(len(line), 300)]
}

// parsePluginResponse parses a CredentialProviderResponse.
func parsePluginResponse(text []byte, apiVersion string) (*pluginResponse, error) {
	var body struct {
		APIVersion    string                                         `json:"apiVersion"`
		Kind          string                                         `json:"kind"`
		CacheKeyType  pluginScope                                    `json:"cacheKeyType"`
		CacheDuration *string                                        `json:"cacheDuration"`
		Auth          map[string]struct{ Username, Password string } `json:"auth"`
	}
	if json.Unmarshal(text, &body) != nil || body.Kind != "CredentialProviderResponse" {
		return nil, fmt.Errorf("its answer is no CredentialProviderResponse: %w", blockfmt.ErrUnsupported)
	}
	if body.APIVersion != apiVersion {
		return nil, fmt.Errorf("its answer is not of %s: %w", apiVersion, blockfmt.ErrUnsupported)
	}
	if !slices.Contains([]pluginScope{scopeImage, scopeRegistry, scopeGlobal}, body.CacheKeyType) {
		return nil, fmt.Errorf("its answer has a cacheKeyType other than Image, Registry and Global: %w", blockfmt.ErrUnsupported)
	}
	r := &pluginResponse{scope: body.CacheKeyType}
	if body.CacheDuration != nil {
		life, err := time.ParseDuration(*body.CacheDuration)
		if err != nil || life < 0 {
			return nil, fmt.Errorf("its answer has a cacheDuration that is no duration: %w", blockfmt.ErrUnsupported)
		}
		r.life = &life
	}
	for key, a := range body.Auth {
		pattern, err := parseAuthKey(key)
		if err != nil || a.Username == "" && a.Password == "" {
			continue // as the kubelet does: other keys may be good
		}
		r.auth = append(r.auth, pluginAuth{key, pattern, Credentials{Username: a.Username, Password: a.Password}})
	}
	slices.SortFunc(r.auth, func(a, b pluginAuth) int {
		return cmp.Or(cmp.Compare(len(b.key), len(a.key)), strings.Compare(b.key, a.key))
	})
	return r, nil
}
