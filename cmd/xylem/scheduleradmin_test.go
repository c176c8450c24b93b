package main

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler"
	"github.com/xylem-project/xylem/scheduler/api"
)

// runScheduler runs a scheduler in this process until the test ends.
func runScheduler(t *testing.T) scheduler.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := scheduler.Default()
	cfg.Root, cfg.State, cfg.Listen, cfg.Admin = filepath.Join(dir, "root"), filepath.Join(dir, "state"), freeAddress(t), ""
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- scheduler.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("scheduler: %v", err)
		}
	})
	eventually(t, "the scheduler runs", func() bool { return api.NewAdmin(cfg.Socket()).Ready(t.Context()) == nil })
	return cfg
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l := listenLoopback(t)
	defer l.Close()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !check(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to pass that %s", what)
		}
	}
}

// joined is an agent as far as a scheduler is concerned, which joins with a token and stays until the test ends.
type joined struct{ id string }

func (joined) Position(api.Position) {}
func (joined) Revoked([]string)      {}

func (j joined) heartbeat() api.Heartbeat {
	return api.Heartbeat{Agent: api.Peer{ID: j.id, Addrs: []netip.AddrPort{netip.MustParseAddrPort("10.1.2.3:9752")}}, Zone: "rack-7"}
}

func joinWith(t *testing.T, cfg scheduler.Config, token string) joined {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := api.PeerID(public)
	if err != nil {
		t.Fatal(err)
	}
	j := joined{id}
	client, err := api.NewClient(api.ClientConfig{
		Schedulers: []string{"https://" + cfg.Listen}, Token: token, Dir: t.TempDir(), Key: key, Handler: j, Heartbeat: j.heartbeat,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	eventually(t, "the agent has a session", client.Reachable)
	return j
}

// asker runs commands of `xylem scheduler` on a scheduler.
func asker(t *testing.T, cfg scheduler.Config) func(args ...string) result {
	return func(args ...string) result {
		t.Helper()
		return do(t, append([]string{"--root", cfg.Root, "--state", cfg.State, "scheduler"}, args...)...)
	}
}

func asJSON[T any](t *testing.T, r result) (value T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.out), &value); err != nil || r.code != 0 {
		t.Fatalf("exit code %d, %v in %q, stderr %q", r.code, err, r.out, r.stderr)
	}
	return value
}

// A token lets one agent join, which is listed, revoked and pardoned.
func TestSchedulerAgents(t *testing.T) {
	cfg := runScheduler(t)
	ask := asker(t, cfg)
	token := ask("token", "create", "--uses", "1")
	if token.code != 0 || token.stderr != "" {
		t.Fatalf("%+v", token)
	}
	agent := joinWith(t, cfg, token.out)
	list := ask("agents")
	for _, word := range []string{"PEER", agent.id, "10.1.2.3:9752", "rack-7", "true"} {
		if !strings.Contains(list.out, word) {
			t.Errorf("agents is without %q: %q", word, list.out)
		}
	}
	agents := asJSON[[]api.AgentInfo](t, ask("agents", "--output", "json"))
	if len(agents) != 1 || agents[0].Agent.ID != agent.id || !agents[0].Session {
		t.Errorf("%+v", agents)
	}
	if r := ask("revoke", agent.id); r.code != 0 || r.out != "" || r.stderr != "" {
		t.Errorf("revoke: %+v", r)
	}
	eventually(t, "the agent is revoked", func() bool { return ask("revoked").out == agent.id+"\n" })
	if r := ask("pardon", agent.id); r.code != 0 || r.stderr != "" {
		t.Errorf("pardon: %+v", r)
	}
	eventually(t, "the agent is pardoned", func() bool { return len(asJSON[[]string](t, ask("revoked", "-o", "json"))) == 0 })
	ask("pardon", agent.id).checkFailed(t, 1, agent.id, "xylem scheduler revoked")
	ask("revoke", "somebody").checkFailed(t, 2, "somebody", "xylem scheduler agents")
}

func TestSchedulerTokens(t *testing.T) {
	cfg := runScheduler(t)
	ask := asker(t, cfg)
	first, err := os.ReadFile(cfg.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	made := asJSON[api.TokenResponse](t, ask("token", "create", "--ttl", "1h", "--uses", "3", "-o", "json"))
	if _, err := api.ParseToken(made.Token); err != nil || made.ID == "" {
		t.Errorf("%+v: %v", made, err)
	}
	list := ask("token", "list")
	for _, word := range []string{"ID", made.ID, "3", "any", "never"} {
		if !strings.Contains(list.out, word) {
			t.Errorf("token list is without %q: %q", word, list.out)
		}
	}
	secret := strings.Split(made.Token, ".")[2]
	if json := ask("token", "list", "-o", "json").out; strings.Contains(list.out+json, secret) || strings.Contains(list.out+json, strings.Split(string(first), ".")[2]) {
		t.Error("secrets are listed")
	}
	if r := ask("token", "revoke", made.ID); r.code != 0 || r.out != "" {
		t.Errorf("token revoke: %+v", r)
	}
	if left := asJSON[[]api.TokenInfo](t, ask("token", "list", "-o", "json")); len(left) != 1 {
		t.Errorf("%+v", left)
	}
	ask("token", "revoke", made.ID).checkFailed(t, 1, made.ID, "xylem scheduler token list")
	ask("token", "create", "--uses", "-1").checkFailed(t, 2, "--uses")
	ask("token").checkFailed(t, 2, "--help")
	ask("tokens").checkFailed(t, 2, "tokens")
}

func TestSchedulerIsNotThere(t *testing.T) {
	for _, args := range []string{"agents", "revoked", "token list", "token create", "token revoke x", "pardon x"} {
		do(t, append([]string{"scheduler"}, strings.Fields(args)...)...).checkFailed(t, 1, "scheduler.sock", "start 'xylem scheduler'", "--state")
	}
}
