package api_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/xylem-project/xylem/scheduler/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func FuzzParseToken(f *testing.F) {
	good := api.Token{ID: strings.Repeat("a", 16), Secret: strings.Repeat("b", 32), Pin: [32]byte{1}}
	f.Add(good.String())
	f.Add(good.String() + "\n")
	f.Add("xylem1...")
	f.Add("xylem1.aaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb." + strings.Repeat("g", 64))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := api.ParseToken(text)
		if err != nil {
			if !errors.Is(err, api.ErrToken) || strings.Contains(err.Error(), text) && len(text) > 20 {
				t.Errorf("%v", err)
			}
			return
		}
		if token.String() != strings.TrimSpace(text) {
			t.Errorf("%q becomes %q", text, token.String())
		}
	})
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, content := range []string{"one", "", "three"} {
		if err := api.WriteFile(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%q %v", got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := api.WriteFile(filepath.Join(dir, "none", "file"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := api.WriteFile(filepath.Join(dir, "dir"), nil); err == nil {
		t.Error("a directory was replaced")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

// cluster is the CA of a made-up cluster, with a scheduler that says what a test wants.
type cluster struct {
	ca     *x509.Certificate
	key    ed25519.PrivateKey
	server *httptest.Server
	mux    *http.ServeMux
	ttl    time.Duration

	mu    sync.Mutex
	joins int
	seen  []api.Heartbeat
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c := &cluster{key: key, mux: http.NewServeMux(), ttl: time.Hour}
	c.ca = template
	c.ca = c.sign(t, template, key.Public())
	c.mux.HandleFunc("POST "+api.PathJoin, c.join)
	c.server = httptest.NewUnstartedServer(c.mux)
	_, serverKey, _ := ed25519.GenerateKey(rand.Reader)
	leaf := c.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, serverKey.Public())
	c.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, c.ca.Raw}, PrivateKey: serverKey}}, ClientAuth: tls.RequestClientCert,
	}
	c.server.EnableHTTP2 = true
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	return c
}

func (c *cluster) sign(t *testing.T, template *x509.Certificate, key any) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, key, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (c *cluster) token() string {
	return api.Token{ID: strings.Repeat("a", 16), Secret: strings.Repeat("b", 32), Pin: api.Pin(c.ca)}.String()
}

// credential returns an agent's certificate.
func (c *cluster) credential(key ed25519.PublicKey, id string, from, to time.Time, usage x509.ExtKeyUsage) []byte {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(3), URIs: []*url.URL{api.PeerURI(id)}, NotBefore: from, NotAfter: to, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, c.ca, key, c.key)
	if err != nil {
		panic(err)
	}
	return der
}

func (c *cluster) join(w http.ResponseWriter, r *http.Request) {
	var request api.JoinRequest
	json.NewDecoder(r.Body).Decode(&request) //nolint:errcheck // the next line fails then
	csr, err := x509.ParseCertificateRequest(request.Request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	key := csr.PublicKey.(ed25519.PublicKey)
	id, _ := api.PeerID(key)
	c.mu.Lock()
	c.joins++
	c.mu.Unlock()
	cert := c.credential(key, id, time.Now().Add(-time.Hour), time.Now().Add(c.ttl), x509.ExtKeyUsageClientAuth)
	json.NewEncoder(w).Encode(api.JoinResponse{Certificate: cert, CA: c.ca.Raw}) //nolint:errcheck // the client is gone
}

// session makes the scheduler open sessions and say that, line by line.
func (c *cluster) session(lines ...string) {
	c.mux.HandleFunc("POST "+api.PathSession, func(w http.ResponseWriter, r *http.Request) {
		for _, line := range lines {
			w.Write([]byte(line + "\n")) //nolint:errcheck // the client is gone
		}
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
}

// silence is a Handler that remembers.
type silence struct {
	mu        sync.Mutex
	positions []api.Position
}

func (s *silence) Position(p api.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.positions = append(s.positions, p)
}

func (s *silence) Revoked([]string) {}

func (s *silence) epochs() (list []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.positions {
		list = append(list, p.Epoch)
	}
	return list
}

func configFor(t *testing.T, c *cluster) api.ClientConfig {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	return api.ClientConfig{
		Schedulers: []string{c.server.URL}, Token: c.token(), Dir: t.TempDir(), Key: key, Handler: &silence{},
		Heartbeat: func() api.Heartbeat { return api.Heartbeat{} },
	}
}

// run runs a client until the test ends.
func run(t *testing.T, cfg api.ClientConfig) *api.Client {
	t.Helper()
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

const hello = `{"hello":{"session":"s","stripes":2,"interval":50000000,"schedulers":[],"revoked":[]}}`

func TestConfigsThatCannotWork(t *testing.T) {
	c := newCluster(t)
	for name, change := range map[string]func(*api.ClientConfig){
		"no scheduler": func(c *api.ClientConfig) { c.Schedulers = nil },
		"http":         func(c *api.ClientConfig) { c.Schedulers = []string{"http://127.0.0.1:1"} },
		"a path":       func(c *api.ClientConfig) { c.Schedulers = []string{"https://127.0.0.1:1/x"} },
		"a bad token":  func(c *api.ClientConfig) { c.Token = "token" },
		"no key":       func(c *api.ClientConfig) { c.Key = nil },
		"no handler":   func(c *api.ClientConfig) { c.Handler = nil },
		"no heartbeat": func(c *api.ClientConfig) { c.Heartbeat = nil },
		"no directory": func(c *api.ClientConfig) { c.Dir = "" },
	} {
		cfg := configFor(t, c)
		change(&cfg)
		if _, err := api.NewClient(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRunWithoutTokenOrCertificate(t *testing.T) {
	cfg := configFor(t, newCluster(t))
	cfg.Token = ""
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, api.ErrNotJoined) {
		t.Errorf("%v", err)
	}
	if c.Reachable() || c.Stripes() != 0 || c.Credential() != nil {
		t.Error("it has joined")
	}
	if err := c.Admit("x", nil); !errors.Is(err, api.ErrNotJoined) {
		t.Errorf("%v", err)
	}
	_, one := c.Tree(t.Context(), digest.FromString("x"))
	_, all := c.Trees(t.Context())
	if !errors.Is(one, api.ErrUnreachable) || !errors.Is(all, api.ErrUnreachable) {
		t.Errorf("%v %v", one, all)
	}
}

// A certificate is kept, and used without a token; one of another cluster than the token's, of another key, or damaged is replaced.
func TestCertificateIsKept(t *testing.T) {
	c := newCluster(t)
	c.session(hello)
	cfg := configFor(t, c)
	first := run(t, cfg)
	eventually(t, "session", first.Reachable)
	joins := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.joins
	}
	cfg.Token = ""
	second := run(t, cfg)
	eventually(t, "session", second.Reachable)
	if joins() != 1 || !slices.Equal(second.Credential(), first.Credential()) {
		t.Errorf("%d joins", joins())
	}
	file := filepath.Join(cfg.Dir, "membership.json")
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	cfg.Token = c.token()
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, damage := range []string{"", "{}", "[", string(kept[:len(kept)/2])} {
		if err := os.WriteFile(file, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		before := joins()
		again := run(t, cfg)
		eventually(t, "session", again.Reachable)
		if joins() != before+1 {
			t.Errorf("%.10q: %d joins", damage, joins()-before)
		}
	}
	_, cfg.Key, _ = ed25519.GenerateKey(rand.Reader)
	before := joins()
	renamed := run(t, cfg)
	eventually(t, "session", renamed.Reachable)
	if joins() != before+1 {
		t.Error("the certificate of another key is used")
	}
	other := newCluster(t)
	other.session(hello)
	cfg.Schedulers, cfg.Token = []string{other.server.URL}, other.token()
	moved := run(t, cfg)
	eventually(t, "session", moved.Reachable)
}

func TestAdmit(t *testing.T) {
	c := newCluster(t)
	client := run(t, configFor(t, c))
	eventually(t, "certificate", func() bool { return client.Credential() != nil })
	public, key, _ := ed25519.GenerateKey(rand.Reader)
	id, _ := api.PeerID(public)
	now := time.Now()
	const agent = x509.ExtKeyUsageClientAuth
	for name, test := range map[string]struct {
		credential []byte
		ok         bool
	}{
		"good":                    {c.credential(public, id, now.Add(-time.Hour), now.Add(time.Hour), agent), true},
		"ended a minute ago":      {c.credential(public, id, now.Add(-time.Hour), now.Add(-time.Minute), agent), true},
		"ended long ago":          {c.credential(public, id, now.Add(-time.Hour), now.Add(-10*time.Minute), agent), false},
		"not valid yet":           {c.credential(public, id, now.Add(time.Hour), now.Add(2*time.Hour), agent), false},
		"made for a server":       {c.credential(public, id, now.Add(-time.Hour), now.Add(time.Hour), x509.ExtKeyUsageServerAuth), false},
		"with another's name":     {c.credential(public, client.Peer(), now.Add(-time.Hour), now.Add(time.Hour), agent), false},
		"of another cluster":      {newCluster(t).credential(public, id, now.Add(-time.Hour), now.Add(time.Hour), agent), false},
		"nothing":                 {nil, false},
		"the agent's own":         {client.Credential(), false},
		"the CA's":                {c.ca.Raw, false},
		"good and something more": {append(c.credential(public, id, now.Add(-time.Hour), now.Add(time.Hour), agent), 0), false},
	} {
		if err := client.Admit(id, test.credential); test.ok != (err == nil) || err != nil && !errors.Is(err, api.ErrCredential) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := api.ValidPeerID(id); err != nil || api.ValidPeerID("x") == nil || api.ValidPeerID("") == nil {
		t.Errorf("peer IDs: %v", err)
	}
	_ = key
}

// A scheduler that says what no scheduler says has no session, and the agent goes on trying.
func TestSchedulersThatSpeakNonsense(t *testing.T) {
	for name, lines := range map[string][]string{
		"nothing":        {},
		"no hello":       {`{"position":{}}`},
		"no JSON":        {"x"},
		"three stripes":  {`{"hello":{"session":"s","stripes":3,"interval":1000000000}}`},
		"no interval":    {`{"hello":{"session":"s","stripes":2}}`},
		"an endless one": {strings.Repeat("x", 2*api.MaxEvent)},
		"goodbye":        {hello, `{"bye":"go away"}`},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			calls := make(chan struct{}, 1000)
			c.mux.HandleFunc("POST "+api.PathSession, func(w http.ResponseWriter, _ *http.Request) {
				calls <- struct{}{}
				for _, line := range lines {
					w.Write([]byte(line + "\n")) //nolint:errcheck // the client is gone
				}
			})
			client := run(t, configFor(t, c))
			<-calls
			<-calls
			eventually(t, "no session", func() bool { return !client.Reachable() })
		})
	}
}

// Positions that are old, of images that the agent does not need, or of stripes that there are not, are not handed on.
func TestPositionsThatDoNotCount(t *testing.T) {
	c := newCluster(t)
	image, other := digest.FromString("image"), digest.FromString("other")
	said := make(chan string, 100)
	entered := make(chan struct{}, 10)
	c.mux.HandleFunc("POST "+api.PathSession, func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case line := <-said:
				w.Write([]byte(line + "\n")) //nolint:errcheck // the client is gone
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	c.mux.HandleFunc("POST "+api.PathEnter, func(w http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		w.Write([]byte("{}")) //nolint:errcheck // the client is gone
	})
	c.mux.HandleFunc("POST "+api.PathLeave, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) }) //nolint:errcheck // as above
	c.mux.HandleFunc("POST "+api.PathHeartbeat, func(w http.ResponseWriter, r *http.Request) {
		var h api.Heartbeat
		json.NewDecoder(r.Body).Decode(&h) //nolint:errcheck // the test sees it
		c.mu.Lock()
		c.seen = append(c.seen, h)
		c.mu.Unlock()
		w.Write([]byte("{}")) //nolint:errcheck // the client is gone
	})
	cfg := configFor(t, c)
	heard := &silence{}
	cfg.Handler = heard
	cfg.Heartbeat = func() api.Heartbeat { return api.Heartbeat{Zone: "z", Images: []api.Membership{{Image: other}}} }
	client, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client.Enter(other, "", []int{1, 1})
	client.Leave(other) // before it runs
	client.Leave("unknown")
	client = run(t, cfg)
	said <- hello
	client.Enter(image, "ref", []int{1, 1})
	<-entered
	position := func(image digest.Digest, stripes, stripe int, epoch uint64) {
		text, _ := json.Marshal(api.Event{Position: &api.Position{Image: image, Stripes: stripes, Stripe: stripe, Epoch: epoch}})
		said <- string(text)
	}
	position(image, 2, 0, 5)
	position(other, 2, 0, 6)
	position(image, 2, 0, 4)
	position(image, 4, 3, 7)
	position(image, 2, 2, 8)
	position(image, 2, -1, 9)
	position(image, 2, 1, 1)
	position(image, 2, 0, 5)
	said <- `{"moved":{"image":"` + other.String() + `"}}`
	said <- `{"revoked":["x"]}`
	said <- `{"something":"new"}`
	position(image, 2, 0, 10)
	eventually(t, "the last position", func() bool { return slices.Contains(heard.epochs(), 10) })
	if got := heard.epochs(); !slices.Equal(got, []uint64{5, 1, 5, 10}) {
		t.Errorf("heard %v", got)
	}
	eventually(t, "heartbeat", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.ContainsFunc(c.seen, func(h api.Heartbeat) bool {
			return h.Zone == "z" && h.Agent.ID == client.Peer() && len(h.Images) == 1 && h.Images[0].Image == image
		})
	})
	said <- `{"moved":{"image":"` + image.String() + `"}}`
	<-entered // again
	client.Leave(image)
	position(image, 2, 0, 11)
	client.Enter(image, "ref", []int{1, 1})
	<-entered
	position(image, 2, 0, 12)
	eventually(t, "the last position", func() bool { return slices.Contains(heard.epochs(), 12) })
}

// A scheduler that does not answer heartbeats has no session any more.
func TestDeafScheduler(t *testing.T) {
	c := newCluster(t)
	c.session(hello)
	c.mux.HandleFunc("POST "+api.PathHeartbeat, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	client := run(t, configFor(t, c))
	eventually(t, "session", client.Reachable)
	client.Beat()
	eventually(t, "no session", func() bool { return !client.Reachable() })
}
