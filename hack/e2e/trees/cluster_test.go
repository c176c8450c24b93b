package trees

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/hack/lab"
	"github.com/xylem-project/xylem/hack/nodelab"
	"github.com/xylem-project/xylem/scheduler/api"
)

// An agent without a token of the cluster runs from the registry alone, and nobody feeds it or is fed by it.
func alienComes(t *testing.T, s *spread) {
	at := s.Hosts()[0]
	const port = 9753
	text, err := os.ReadFile(s.JoinToken())
	must(t, err)
	token, err := api.ParseToken(string(text))
	must(t, err)
	token.Secret = strings.Repeat("0", len(token.Secret))
	wrong := s.Services.Path("wrong-token")
	must(t, os.WriteFile(wrong, []byte(token.String()), 0o600))
	config := fmt.Sprintf("fill = true\nschedulers = [%q]\njoin_token_file = %q\nlisten = \"%s:%d\"\n", s.SchedulerURL(), wrong, at.Addr, port)
	node, err := s.Services.Node(t.Context(), nodelab.NodeConfig{Name: "alien", Xylem: true, AgentOnly: true, Place: at, AgentConfig: config})
	must(t, err)
	t.Cleanup(func() { must(t, node.Close()) })
	alien := &lab.Host{Name: "alien", Addr: at.Addr, Node: node}
	s.mount(t, append(slices.Clone(s.Hosts()), alien)...)
	s.readable(t, alien)
	s.complete(t, s.Hosts()...)
	s.inTree(t, patience, s.Hosts()[1], s.Hosts()...)
	if agents, err := api.NewAdmin(s.SchedulerSocket()).Agents(t.Context()); err != nil || len(agents) != len(s.Hosts()) {
		t.Errorf("the scheduler knows %d agents of %d, %v", len(agents), len(s.Hosts()), err)
	}
	s.alone(t, alien)
	s.egress(t, 2.2)
	s.strangerAsks(t)
}

// alone checks that a host got nothing from others and gave them nothing.
func (s *spread) alone(t *testing.T, h *lab.Host) {
	t.Helper()
	m, err := h.Node.Metrics(t.Context())
	must(t, err)
	for _, name := range []string{"xylem_peer_sent_bytes_total", "xylem_peer_received_bytes_total"} {
		if n, ok := m[name]; n != 0 || !ok {
			t.Errorf("%s on %s is %v (there: %t), want 0", name, h.Name, n, ok)
		}
	}
}

// agentIsRevoked takes an agent out of the cluster while an image spreads: it goes on from the registry alone.
func agentIsRevoked(t *testing.T, s *spread) {
	admin := api.NewAdmin(s.SchedulerSocket())
	s.mount(t, s.Hosts()...)
	gone, others := s.choose(t, innerOf)
	peer := s.peer(t, gone)
	must(t, admin.Revoke(t.Context(), peer))
	t.Cleanup(func() { must(t, admin.Pardon(context.WithoutCancel(t.Context()), peer)) })
	s.inTree(t, patience, others[0], others...)
	s.complete(t, others...)
	s.readable(t, gone)
	s.egress(t, 2.3)

	before, err := gone.Node.Metrics(t.Context())
	must(t, err)
	later := newSpread(t, s.Lab, s.name+"-later")
	later.mount(t, later.Hosts()...)
	later.complete(t, others...)
	later.readable(t, gone)
	later.inTree(t, patience, others[0], others...)
	later.egress(t, 2.2)
	after, err := gone.Node.Metrics(t.Context())
	must(t, err)
	for _, name := range []string{"xylem_peer_sent_bytes_total", "xylem_peer_received_bytes_total"} {
		if n := after[name] - before[name]; n != 0 {
			t.Errorf("a revoked agent has %v more in %s\n%s", n, name, gone.Node.AgentLogTail())
		}
	}
	outcome := later.ask(t, others[0], later.identity(t, gone))
	if !outcome.Denied {
		t.Errorf("with the certificate of a revoked agent: %+v", outcome)
	}
}

// peer is the ID of a host's agent.
func (s *spread) peer(t *testing.T, h *lab.Host) string {
	t.Helper()
	agents, err := api.NewAdmin(s.SchedulerSocket()).Agents(t.Context())
	must(t, err)
	for _, a := range agents {
		if len(a.Agent.Addrs) == 1 && a.Agent.Addrs[0].Addr() == h.Addr {
			return a.Agent.ID
		}
	}
	t.Fatal(errors.New("the scheduler does not know " + h.Name))
	return ""
}

// identity is what a host's agent shows to others.
func (s *spread) identity(t *testing.T, h *lab.Host) identity {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.Node.Root(), "cluster", "membership.json"))
	must(t, err)
	var kept struct{ Certificate []byte }
	must(t, json.Unmarshal(text, &kept))
	return identity{KeyFile: filepath.Join(h.Node.Root(), "peer.key"), Certificate: kept.Certificate}
}

// strangerAsks checks that who has no certificate of the cluster for its own key gets nothing of anybody.
func (s *spread) strangerAsks(t *testing.T) {
	stolen := s.identity(t, s.Hosts()[1])
	for _, h := range s.Hosts()[2:] {
		for what, i := range map[string]identity{"nothing": {}, "garbage": {Certificate: []byte("garbage")}, "another's certificate": {Certificate: stolen.Certificate}} {
			if outcome := s.ask(t, h, i); !outcome.Denied {
				t.Errorf("who shows %s to %s: %+v", what, h.Name, outcome)
			}
		}
	}
	if outcome := s.ask(t, s.Hosts()[2], stolen); outcome.Denied {
		t.Errorf("with a member's key and certificate, as a proof that others were refused for theirs: %+v", outcome)
	}
}
