package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// identity is who the agent is in its cluster: what must survive a restart, and can be used when no scheduler is there.
type identity struct {
	dir  string
	key  ed25519.PrivateKey
	peer string

	mu          sync.RWMutex
	certificate *x509.Certificate // nil before joining
	ca          *x509.Certificate
	revoked     map[string]bool
}

// kept is an identity's file.
type kept struct {
	Certificate []byte   `json:"certificate"`
	CA          []byte   `json:"ca"`
	Revoked     []string `json:"revoked,omitempty"`
}

func newIdentity(dir string, key ed25519.PrivateKey) (*identity, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("the agent's key is not ed25519")
	}
	id, err := PeerID(key.Public().(ed25519.PublicKey))
	return &identity{dir: dir, key: key, peer: id}, err
}

func (i *identity) file() string { return filepath.Join(i.dir, "membership.json") }

// load reads what a former run kept. A file that is of no use is as good as none, but said.
func (i *identity) load(token string) error {
	text, err := os.ReadFile(i.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if err == nil {
		err = i.accept(k)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", i.file(), err)
	}
	if t, err := ParseToken(token); err == nil && Pin(i.ca) != t.Pin {
		i.forget()
		return fmt.Errorf("%s is of another cluster than the join token", i.file())
	}
	return nil
}

// accept takes a certificate over if it is one for this key.
func (i *identity) accept(k kept) error {
	ca, err := x509.ParseCertificate(k.CA)
	if err != nil {
		return fmt.Errorf("certificate of the CA: %w", err)
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if peer, err := VerifyCredential(k.Certificate, ca, cert.NotBefore); err != nil {
		return err
	} else if peer != i.peer {
		return fmt.Errorf("%w: it is that of %s, this agent is %s", ErrCredential, peer, i.peer)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.certificate, i.ca, i.revoked = cert, ca, map[string]bool{}
	for _, peer := range k.Revoked {
		i.revoked[peer] = true
	}
	return nil
}

func (i *identity) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.certificate, i.ca, i.revoked = nil, nil, nil
}

// keep takes over and writes what a scheduler answered.
func (i *identity) keep(r JoinResponse) error {
	ca, err := x509.ParseCertificate(r.CA)
	if err != nil {
		return fmt.Errorf("certificate of the CA: %w", err)
	}
	if _, err := VerifyCredential(r.Certificate, ca, time.Now()); err != nil {
		return err
	}
	k := kept{r.Certificate, r.CA, i.revocations()}
	if err := i.accept(k); err != nil {
		return err
	}
	return i.write(k)
}

func (i *identity) write(k kept) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return err
	}
	return WriteFile(i.file(), text)
}

func (i *identity) revocations() []string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var all []string
	for peer := range i.revoked {
		all = append(all, peer)
	}
	return all
}

// revoke replaces the list of revoked peers. It returns false if that is what it was.
func (i *identity) revoke(peers []string) (changed bool, err error) {
	i.mu.Lock()
	changed = len(peers) != len(i.revoked)
	revoked := make(map[string]bool, len(peers))
	for _, peer := range peers {
		revoked[peer] = true
		changed = changed || !i.revoked[peer]
	}
	i.revoked = revoked
	var k kept
	if i.certificate != nil {
		k = kept{i.certificate.Raw, i.ca.Raw, peers}
	}
	i.mu.Unlock()
	if !changed || k.CA == nil {
		return changed, nil
	}
	return true, i.write(k)
}

func (i *identity) credential() []byte {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.certificate == nil {
		return nil
	}
	return i.certificate.Raw
}

// valid tells whether the agent has a certificate that schedulers accept.
func (i *identity) valid(now time.Time) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.certificate != nil && now.Before(i.certificate.NotAfter)
}

// renewal returns when to ask for a new certificate: when two thirds of the old one's time are over, not counting that which
// is for clocks that are slow.
func (i *identity) renewal() time.Time {
	i.mu.RLock()
	defer i.mu.RUnlock()
	c := i.certificate
	return c.NotAfter.Add(-(c.NotAfter.Sub(c.NotBefore) - Skew) / 3)
}

func (i *identity) admit(peer string, credential []byte) error {
	i.mu.RLock()
	own, ca, revoked := i.certificate, i.ca, i.revoked[peer]
	i.mu.RUnlock()
	if own == nil {
		return ErrNotJoined
	}
	if revoked {
		return fmt.Errorf("%w: %s is revoked", ErrCredential, peer)
	}
	now := time.Now()
	cert, err := x509.ParseCertificate(credential)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCredential, err)
	}
	if over := now.Sub(cert.NotAfter); over > 0 && over < skewAdmit {
		now = cert.NotAfter
	}
	id, err := VerifyCredential(credential, ca, now)
	if err == nil && id != peer {
		err = fmt.Errorf("%w: it is that of %s, not of %s", ErrCredential, id, peer)
	}
	return err
}

// request returns what a certificate is asked for with.
func (i *identity) request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, i.key)
}

// tls is how the agent shows itself to schedulers, and knows them.
func (i *identity) tls() *tls.Config {
	i.mu.RLock()
	defer i.mu.RUnlock()
	roots := x509.NewCertPool()
	roots.AddCert(i.ca)
	cert := tls.Certificate{Certificate: [][]byte{i.certificate.Raw}, PrivateKey: i.key, Leaf: i.certificate}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}}
}

// joinTLS trusts the CA that the token pins, and nothing else.
func joinTLS(t Token) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		for _, ca := range s.PeerCertificates {
			if Pin(ca) != t.Pin {
				continue
			}
			roots := x509.NewCertPool()
			roots.AddCert(ca)
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: s.ServerName})
			return err
		}
		return errors.New("the scheduler is of another cluster than the join token")
	}}
}

// join asks a scheduler for a certificate.
func (i *identity) join(ctx context.Context, url string, t Token) error {
	request, err := i.request()
	if err != nil {
		return err
	}
	client := newHTTP(joinTLS(t))
	defer client.CloseIdleConnections()
	var answer JoinResponse
	if err := call(ctx, client, http.MethodPost, url+PathJoin, "", JoinRequest{t.ID, t.Secret, request}, &answer); err != nil {
		return err
	}
	if ca, err := x509.ParseCertificate(answer.CA); err != nil || Pin(ca) != t.Pin {
		return errors.New("the scheduler answered with another cluster's CA")
	}
	return i.keep(answer)
}

// renew asks for a new certificate with the one that is valid still.
func (i *identity) renew(ctx context.Context, client *http.Client, url string) error {
	request, err := i.request()
	if err != nil {
		return err
	}
	var answer JoinResponse
	if err := call(ctx, client, http.MethodPost, url+PathRenew, "", RenewRequest{request}, &answer); err != nil {
		return err
	}
	i.mu.RLock()
	same := bytes.Equal(answer.CA, i.ca.Raw)
	i.mu.RUnlock()
	if !same {
		return errors.New("the scheduler answered with another cluster's CA")
	}
	return i.keep(answer)
}
