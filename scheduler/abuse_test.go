package scheduler_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// stranger is somebody who speaks to schedulers without a Client.
type stranger struct {
	t    testing.TB
	url  string
	key  ed25519.PrivateKey
	id   string
	http *http.Client
}

func newStranger(t testing.TB, d *daemon) *stranger {
	t.Helper()
	s := &stranger{t: t, url: d.url, key: newKey(t)}
	s.id, _ = api.PeerID(s.key.Public().(ed25519.PublicKey))
	s.show(nil)
	return s
}

// show makes the stranger show a certificate from now on.
func (s *stranger) show(certificate []byte) {
	security := &tls.Config{InsecureSkipVerify: true}
	if certificate != nil {
		security.Certificates = []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: s.key}}
	}
	s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: security, ForceAttemptHTTP2: true}}
	s.t.Cleanup(s.http.CloseIdleConnections)
}

func (s *stranger) request(template *x509.CertificateRequest) []byte {
	s.t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}

// call makes a call and returns the status and the answer.
func (s *stranger) call(method, path, session string, body any) (int, string) {
	s.t.Helper()
	text, ok := body.(string)
	if !ok {
		b, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		text = string(b)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set(api.SessionHeader, session)
	answer, err := s.http.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	return answer.StatusCode, string(said)
}

func (s *stranger) expect(want int, method, path, session string, body any) string {
	s.t.Helper()
	status, said := s.call(method, path, session, body)
	if status != want {
		s.t.Errorf("%s %s: %d %.300s, want %d", method, path, status, said, want)
	}
	return said
}

// join gets a certificate with a token, and shows it.
func (s *stranger) join(token string) api.JoinResponse {
	s.t.Helper()
	t, err := api.ParseToken(token)
	if err != nil {
		s.t.Fatal(err)
	}
	said := s.expect(200, "POST", api.PathJoin, "", api.JoinRequest{ID: t.ID, Secret: t.Secret, Request: s.request(&x509.CertificateRequest{})})
	var answer api.JoinResponse
	if err := json.Unmarshal([]byte(said), &answer); err != nil {
		s.t.Fatal(err)
	}
	s.show(answer.Certificate)
	return answer
}

func (s *stranger) heartbeat() api.Heartbeat { return api.Heartbeat{Agent: api.Peer{ID: s.id}} }

// session opens a session, and returns its name and what comes on it.
func (s *stranger) session() (string, *bufio.Scanner) {
	s.t.Helper()
	text, err := json.Marshal(api.SessionRequest{Heartbeat: s.heartbeat()})
	if err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.http.Post(s.url+api.PathSession, "", bytes.NewReader(text))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { answer.Body.Close() })
	lines := bufio.NewScanner(answer.Body)
	var e api.Event
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Hello == nil {
		s.t.Fatalf("session begins with %d %q", answer.StatusCode, lines.Text())
	}
	return e.Hello.Session, lines
}

// ends waits for the end of a session and returns why it ended.
func ends(t *testing.T, lines *bufio.Scanner) (bye string) {
	t.Helper()
	for lines.Scan() {
		var e api.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		bye = e.Bye
	}
	return bye
}

func one(t *testing.T) *daemon {
	t.Helper()
	return start(t, config(t), store.NewMemory())
}

var agentCalls = []struct{ method, path string }{
	{"POST", api.PathSession}, {"POST", api.PathHeartbeat}, {"POST", api.PathEnter}, {"POST", api.PathLeave}, {"POST", api.PathRenew},
	{"POST", api.PathConvert}, {"POST", api.PathConverted}, {"POST", api.PathHolding},
	{"GET", api.PathTrees}, {"GET", api.PathTrees + "/" + string(imageName(1))},
}

func TestOnlyAgentsAreServed(t *testing.T) {
	d := one(t)
	nobody := newStranger(t, d)
	for _, c := range agentCalls {
		nobody.expect(401, c.method, c.path, "", "{}")
	}
	nobody.expect(404, "GET", "/", "", "")
	nobody.expect(405, "GET", api.PathJoin, "", "")
	for _, path := range []string{"/v1/tokens", "/v1/revoked", "/v1/agents", "/metrics"} {
		nobody.expect(404, "GET", path, "", "")
	}
}

func TestCertificateOfAnotherCluster(t *testing.T) {
	d, other := one(t), one(t)
	s := newStranger(t, other)
	s.join(other.token(t))
	s.url = d.url
	for _, c := range agentCalls {
		s.expect(401, c.method, c.path, "", "{}")
	}
	n := newNode(t, d.token(t), other.url) // a token says which cluster it is of
	time.Sleep(300 * time.Millisecond)
	if n.client.Credential() != nil {
		t.Error("an agent joined another cluster than that of its token")
	}
	agent := newNode(t, d.token(t), d.url)
	eventually(t, "session", func() error { return reachable(agent) })
	if err := agent.client.Admit(s.id, nil); !errors.Is(err, api.ErrCredential) {
		t.Errorf("no credential: %v", err)
	}
}

// A certificate that somebody made for himself, whatever it says, or that is made for something else.
func TestForgedCertificates(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	good := s.join(d.token(t))
	ca, err := x509.ParseCertificate(good.CA)
	if err != nil {
		t.Fatal(err)
	}
	for name, parent := range map[string]*x509.Certificate{"self-signed": nil, "as if of the CA": ca} {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), URIs: []*url.URL{api.PeerURI(s.id)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		issuer := template
		if parent != nil {
			issuer = &x509.Certificate{Subject: parent.Subject, RawSubject: parent.RawSubject, SubjectKeyId: parent.SubjectKeyId}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, issuer, s.key.Public(), s.key)
		if err != nil {
			t.Fatal(err)
		}
		s.show(der)
		if said := s.expect(401, "POST", api.PathHeartbeat, "", s.heartbeat()); !strings.Contains(said, "credential") {
			t.Errorf("%s: %s", name, said)
		}
	}
	server, err := tls.Dial("tcp", d.cfg.Listen, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := api.VerifyCredential(server.ConnectionState().PeerCertificates[0].Raw, ca, time.Now()); !errors.Is(err, api.ErrCredential) {
		t.Errorf("the server's certificate as an agent's: %v", err)
	}
}

func TestJoinTokens(t *testing.T) {
	d := one(t)
	admin := api.NewAdmin(d.cfg.Socket())
	s := newStranger(t, d)
	good, err := api.ParseToken(d.token(t))
	if err != nil {
		t.Fatal(err)
	}
	csr := s.request(&x509.CertificateRequest{})
	for name, r := range map[string]api.JoinRequest{
		"wrong secret": {ID: good.ID, Secret: strings.Repeat("0", 32), Request: csr},
		"no secret":    {ID: good.ID, Request: csr},
		"unknown":      {ID: strings.Repeat("0", 16), Secret: good.Secret, Request: csr},
		"part of one":  {ID: good.ID[:8], Secret: good.Secret, Request: csr},
		"empty":        {Request: csr},
		"a path":       {ID: "../cluster", Secret: good.Secret, Request: csr},
	} {
		if said := s.expect(403, "POST", api.PathJoin, "", r); strings.Contains(said, good.Secret) {
			t.Errorf("%s: the answer has the secret", name)
		}
	}
	short, err := admin.CreateToken(t.Context(), time.Millisecond, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	expired, _ := api.ParseToken(short.Token)
	s.expect(403, "POST", api.PathJoin, "", api.JoinRequest{ID: expired.ID, Secret: expired.Secret, Request: csr})

	twice, err := admin.CreateToken(t.Context(), time.Hour, 2)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		newStranger(t, d).join(twice.Token)
	}
	used, _ := api.ParseToken(twice.Token)
	s.expect(403, "POST", api.PathJoin, "", api.JoinRequest{ID: used.ID, Secret: used.Secret, Request: csr})

	list, err := admin.Tokens(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != good.ID {
		t.Errorf("%+v %v", list, err)
	}
	s.join(d.token(t))
	if err := admin.RevokeToken(t.Context(), good.ID); err != nil {
		t.Fatal(err)
	}
	if err := admin.RevokeToken(t.Context(), good.ID); err == nil {
		t.Error("a token can be revoked twice")
	}
	s.expect(403, "POST", api.PathJoin, "", api.JoinRequest{ID: good.ID, Secret: good.Secret, Request: csr})
	if _, err := admin.CreateToken(t.Context(), -time.Second, 0); err == nil {
		t.Error("a token that was never valid")
	}
}

// What a certificate request asks for does not matter; that it is signed with the key does.
func TestCertificateRequests(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	token, _ := api.ParseToken(d.token(t))
	join := func(csr []byte) (int, string) {
		return s.call("POST", api.PathJoin, "", api.JoinRequest{ID: token.ID, Secret: token.Secret, Request: csr})
	}
	forged := s.request(&x509.CertificateRequest{})
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{"nothing": nil, "nonsense": []byte("nonsense"), "a bad signature": forged} {
		if status, said := join(csr); status != 400 {
			t.Errorf("%s: %d %s", name, status, said)
		}
	}
	victim := newStranger(t, d)
	status, said := join(s.request(&x509.CertificateRequest{
		URIs: []*url.URL{api.PeerURI(victim.id)}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}))
	var answer api.JoinResponse
	if err := json.Unmarshal([]byte(said), &answer); err != nil || status != 200 {
		t.Fatalf("%d %s", status, said)
	}
	cert, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != api.PeerURI(s.id).String() || cert.DNSNames != nil || cert.IPAddresses != nil || cert.IsCA {
		t.Errorf("the certificate is for %v %v %v", cert.URIs, cert.DNSNames, cert.IPAddresses)
	}
	s.show(answer.Certificate)
	s.expect(400, "POST", api.PathRenew, "", api.RenewRequest{Request: victim.request(&x509.CertificateRequest{})})
	s.expect(200, "POST", api.PathRenew, "", api.RenewRequest{Request: s.request(&x509.CertificateRequest{})})
}

func TestRevokedAgent(t *testing.T) {
	d := one(t)
	admin := api.NewAdmin(d.cfg.Socket())
	nodes := members(t, d, 3, 1)
	s := newStranger(t, d)
	cert := s.join(d.token(t))
	session, lines := s.session()
	s.expect(200, "POST", api.PathEnter, session, api.EnterRequest{Image: imageName(1), Total: []int{1, 1}})
	eventually(t, "four members", func() error { return seen(d, imageName(1), 4) })
	if err := nodes[0].client.Admit(s.id, cert.Certificate); err != nil {
		t.Error(err)
	}
	if err := admin.Revoke(t.Context(), s.id); err != nil {
		t.Fatal(err)
	}
	if bye := ends(t, lines); !strings.Contains(bye, "revoked") {
		t.Errorf("the session ended with %q", bye)
	}
	eventually(t, "it is out", func() error { return consistent(imageName(1), nodes) })
	for _, c := range agentCalls {
		s.expect(403, c.method, c.path, session, "{}")
	}
	token, _ := api.ParseToken(d.token(t))
	again := api.JoinRequest{ID: token.ID, Secret: token.Secret, Request: s.request(&x509.CertificateRequest{})}
	s.expect(403, "POST", api.PathJoin, "", again)
	eventually(t, "agents know", func() error {
		for _, n := range nodes {
			if err := n.client.Admit(s.id, cert.Certificate); !errors.Is(err, api.ErrCredential) {
				return fmt.Errorf("admitted: %w", err)
			}
			n.mu.Lock()
			told := slices.Equal(n.revoked, []string{s.id})
			n.mu.Unlock()
			if !told {
				return errors.New("the handler is not told")
			}
		}
		return nil
	})
	nodes[0].stop() // what it knows outlives it, also without a scheduler
	nodes[0].cfg.Schedulers = []string{"https://127.0.0.1:1"}
	nodes[0].start()
	if err := nodes[0].client.Admit(s.id, cert.Certificate); !errors.Is(err, api.ErrCredential) {
		t.Errorf("after a restart: %v", err)
	}
	if peers, err := admin.Revoked(t.Context()); err != nil || !slices.Equal(peers, []string{s.id}) {
		t.Errorf("%v %v", peers, err)
	}
	if err := admin.Pardon(t.Context(), s.id); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is let in again", func() error {
		if status, said := s.call("POST", api.PathJoin, "", again); status != 200 {
			return errors.New(said)
		}
		return nil
	})
	if err := errors.Join(admin.Pardon(t.Context(), s.id)); err == nil {
		t.Error("pardoned twice")
	}
	if err := admin.Revoke(t.Context(), "nobody"); err == nil {
		t.Error("what is no peer ID is revoked")
	}
}

func TestNonsenseIsRefused(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	s.join(d.token(t))
	session, _ := s.session()
	long := strings.Repeat("x", 2000)
	huge := `{"image":"` + strings.Repeat("x", api.MaxRequest) + `"}`
	for _, c := range []struct {
		status int
		path   string
		body   any
	}{
		{400, api.PathEnter, ""},
		{400, api.PathEnter, "{"},
		{400, api.PathEnter, "[]"},
		{400, api.PathEnter, `{"image":"x"} trailing`},
		{400, api.PathEnter, api.EnterRequest{Image: "sha256:12", Total: []int{1, 1}}},
		{400, api.PathEnter, api.EnterRequest{Image: "../../cluster", Total: []int{1, 1}}},
		{400, api.PathEnter, api.EnterRequest{Image: imageName(1), Total: []int{1}}},
		{400, api.PathEnter, api.EnterRequest{Image: imageName(1), Total: []int{1, -1}}},
		{400, api.PathEnter, api.EnterRequest{Image: imageName(1), Total: []int{1, 1 << 40}}},
		{400, api.PathEnter, api.EnterRequest{Image: imageName(1), Total: []int{1, 1}, Ref: long}},
		{413, api.PathEnter, huge},
		{413, api.PathHeartbeat, huge},
		{413, api.PathSession, huge},
		{413, api.PathJoin, huge},
		{400, api.PathLeave, api.LeaveRequest{Image: "x"}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: "another"}}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Zone: long}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Uplink: -1}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Children: -1}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Budget: 1 << 50}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Images: []api.Membership{{Image: "x"}}}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Images: []api.Membership{{Image: imageName(1), Held: []int{1, 2, 3}}}}},
		{400, api.PathHeartbeat, api.Heartbeat{Agent: api.Peer{ID: s.id}, Images: []api.Membership{{Image: imageName(1), Failed: make([]string, 1000)}}}},
		{400, api.PathConvert, api.ConvertRequest{Source: "sha256:12"}},
		{400, api.PathConvert, api.ConvertRequest{Source: imageName(1), Missing: "../../cluster"}},
		{413, api.PathConvert, huge},
		{400, api.PathConverted, api.ConvertedRequest{Source: "x"}},
		{400, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Image: "x"}},
		{400, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Failed: long}},
		{400, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Image: imageName(2), Pushed: long, Agent: api.Peer{ID: s.id}}},
		{400, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Image: imageName(2), Failed: "why"}},
		{400, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Image: imageName(2), Agent: api.Peer{ID: "another"}}},
		{412, api.PathConverted, api.ConvertedRequest{Source: imageName(1), Image: imageName(2), Agent: api.Peer{ID: s.id}}},
		{400, api.PathHolding, api.HoldingRequest{Agent: api.Peer{ID: "another"}}},
		{400, api.PathHolding, api.HoldingRequest{Agent: api.Peer{ID: s.id, Addrs: make([]netip.AddrPort, 1000)}}},
		{400, api.PathSession, api.SessionRequest{Heartbeat: api.Heartbeat{Agent: api.Peer{ID: "another"}}}},
	} {
		if said := s.expect(c.status, "POST", c.path, session, c.body); strings.Count(said, "\n") > 1 {
			t.Errorf("%s: an error of several lines: %s", c.path, said)
		}
	}
	s.expect(400, "GET", api.PathTrees+"/x", "", "")
	s.expect(404, "GET", api.PathTrees+"/"+string(imageName(1)), "", "")
	s.expect(409, "POST", api.PathHeartbeat, "no such session", s.heartbeat())
	s.expect(409, "POST", api.PathEnter, "", api.EnterRequest{Image: imageName(1), Total: []int{1, 1}})
	h := s.heartbeat()
	h.Images = []api.Membership{{Image: imageName(7)}}
	if said := s.expect(200, "POST", api.PathHeartbeat, session, h); !strings.Contains(said, string(imageName(7))) {
		t.Errorf("a heartbeat of an image that it is not in: %s", said)
	}
	s.expect(200, "POST", api.PathEnter, session, api.EnterRequest{Image: imageName(1), Total: []int{1, 1}})
	h.Images = []api.Membership{{Image: imageName(1), Held: []int{1}}}
	s.expect(400, "POST", api.PathHeartbeat, session, h)
	s.expect(200, "POST", api.PathLeave, session, api.LeaveRequest{Image: imageName(2)}) // which it never entered
	s.expect(200, "POST", api.PathHeartbeat, session, s.heartbeat())
}

// A second session ends the first.
func TestOneSessionEach(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	s.join(d.token(t))
	first, lines := s.session()
	second, _ := s.session()
	if bye := ends(t, lines); !strings.Contains(bye, "same key") {
		t.Errorf("the session ended with %q", bye)
	}
	s.expect(409, "POST", api.PathHeartbeat, first, s.heartbeat())
	s.expect(200, "POST", api.PathHeartbeat, second, s.heartbeat())
}

// An agent that calls too often hears so, and others do not suffer.
func TestFlood(t *testing.T) {
	cfg := config(t)
	cfg.RequestsPerSecond = 5
	d := start(t, cfg, store.NewMemory())
	nodes := members(t, d, 3, 1)
	s := newStranger(t, d)
	s.join(d.token(t))
	session, _ := s.session()
	answers := map[int]int{}
	for range 300 {
		status, _ := s.call("POST", api.PathHeartbeat, session, s.heartbeat())
		answers[status]++
	}
	if answers[429] < 200 || answers[200] < 10 || answers[200]+answers[429] != 300 {
		t.Errorf("answers %v", answers)
	}
	late := newNode(t, d.token(t), d.url)
	late.enter(imageName(1))
	eventually(t, "places for others", func() error { return consistent(imageName(1), append(nodes, late)) })
}

// Whoever sends slowly, or nothing, loses the connection, and does not keep others from theirs.
func TestSlowClients(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	s.join(d.token(t))
	for range 50 {
		c, err := net.Dial("tcp", d.cfg.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, drip := io.Pipe()
	done := make(chan int, 1)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "POST", s.url+api.PathHeartbeat, body)
		answer, err := s.http.Do(r)
		if err != nil {
			done <- 0
			return
		}
		answer.Body.Close()
		done <- answer.StatusCode
	}()
	go io.WriteString(drip, `{"agent":`) //nolint:errcheck // the pipe is closed below
	defer drip.Close()
	n := newNode(t, d.token(t), d.url)
	eventually(t, "others are served", func() error { return reachable(n) })
	silent, err := net.Dial("tcp", d.cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	silent.SetReadDeadline(time.Now().Add(patience)) //nolint:errcheck // it cannot fail
	if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent connection: %v", err)
	}
	select {
	case status := <-done:
		if status == 200 {
			t.Error("half a heartbeat was taken")
		}
	case <-time.After(patience):
		t.Error("a slow call goes on")
	}
}

// Agents whose clocks are wrong by an hour join and stay: what they are given is valid for them.
func TestClockSkew(t *testing.T) {
	d := one(t)
	s := newStranger(t, d)
	answer := s.join(d.token(t))
	ca, err := x509.ParseCertificate(answer.CA)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", d.cfg.Listen, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, skew := range []time.Duration{-time.Hour, 0, time.Hour} {
		now := time.Now().Add(skew)
		if id, err := api.VerifyCredential(answer.Certificate, ca, now); err != nil || id != s.id {
			t.Errorf("%v: %s %v", skew, id, err)
		}
		for _, name := range []string{"127.0.0.1", "localhost"} {
			if _, err := c.ConnectionState().PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now}); err != nil {
				t.Errorf("%v: %v", skew, err)
			}
		}
	}
}

// Certificates are renewed long before they end, without a token and without losing a place.
func TestRenewal(t *testing.T) {
	cfg := config(t)
	cfg.CertificateTTL.Duration = 4 * time.Second
	d := start(t, cfg, store.NewMemory())
	nodes := members(t, d, 2, 1)
	eventually(t, "places", func() error { return consistent(imageName(1), nodes) })
	first := nodes[0].client.Credential()
	eventually(t, "renewal", func() error {
		if bytes.Equal(nodes[0].client.Credential(), first) {
			return errors.New("the certificate is the first one still")
		}
		return nil
	})
	time.Sleep(cfg.CertificateTTL.Duration) // calls with the first are refused now
	eventually(t, "places with the next", func() error { return consistent(imageName(1), nodes) })
	if err := nodes[1].client.Admit(nodes[0].id, nodes[0].client.Credential()); err != nil {
		t.Error(err)
	}
}
