package scheduler

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/xylem-project/xylem/scheduler/api"
	"github.com/xylem-project/xylem/scheduler/store"
)

// cluster is what all schedulers of a cluster share from its creation on. Whoever can read it in the store can issue certificates: the
// store must be as safe as the schedulers are.
type cluster struct {
	CA      []byte `json:"ca"`  // certificate, DER
	Key     []byte `json:"key"` // of the CA, ed25519 seed
	Stripes int    `json:"stripes"`
}

const (
	caLifetime     = 20 * 365 * 24 * time.Hour
	serverLifetime = 30 * 24 * time.Hour
)

// openCluster reads the cluster, or creates it if this is its first scheduler.
func openCluster(ctx context.Context, s store.Store, stripes int) (c cluster, created bool, err error) {
	for range 2 { // the second time if another scheduler creates it in this moment
		items, err := s.Read(ctx, clusterKey)
		if err != nil {
			return c, false, err
		}
		if len(items) > 0 {
			if c, err = decode[cluster](items[0]); err == nil && c.Stripes != stripes {
				err = fmt.Errorf("the cluster has %d stripes, the configuration %d: set stripes = %d", c.Stripes, stripes, c.Stripes)
			}
			return c, false, err
		}
		if c, err = newCluster(stripes, time.Now()); err != nil {
			return c, false, err
		}
		tx := store.Tx{If: []store.Condition{{Key: clusterKey}}, Put: []store.Item{item(clusterKey, c)}}
		if _, err = s.Write(ctx, tx); err == nil || !errors.Is(err, store.ErrConflict) {
			return c, err == nil, err
		}
	}
	return c, false, store.ErrConflict
}

func newCluster(stripes int, now time.Time) (cluster, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return cluster{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "xylem cluster"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	return cluster{CA: der, Key: key.Seed(), Stripes: stripes}, err
}

func serial() *big.Int {
	number, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // never fails
	return number
}

// authority issues certificates.
type authority struct {
	ca   *x509.Certificate
	key  ed25519.PrivateKey
	ttl  time.Duration // of agents' certificates
	host []string      // names of this server

	mu     sync.Mutex
	server *tls.Certificate
}

func newAuthority(c cluster, ttl time.Duration, hosts []string) (*authority, error) {
	ca, err := x509.ParseCertificate(c.CA)
	if err != nil || len(c.Key) != ed25519.SeedSize {
		return nil, fmt.Errorf("record %s: the CA is damaged: %v", clusterKey, err)
	}
	return &authority{ca: ca, key: ed25519.NewKeyFromSeed(c.Key), ttl: ttl, host: hosts}, nil
}

// errRequest says that a certificate was asked for in the wrong way.
var errRequest = errors.New("certificate request refused")

// requester returns the peer whose key signed a certificate request, and the key.
func requester(request []byte) (peer string, key ed25519.PublicKey, err error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", errRequest, err)
	}
	key, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", nil, fmt.Errorf("%w: the key is not ed25519", errRequest)
	}
	peer, err = api.PeerID(key)
	return peer, key, err
}

// agent issues a certificate that binds an agent's key to its peer ID. It says nothing else of what was asked for.
func (a *authority) agent(peer string, key ed25519.PublicKey, now time.Time) (api.JoinResponse, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), URIs: []*url.URL{api.PeerURI(peer)}, NotBefore: now.Add(-api.Skew), NotAfter: now.Add(a.ttl),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, key, a.key)
	return api.JoinResponse{Certificate: der, CA: a.ca.Raw}, err
}

// certificate is tls.Config.GetCertificate: the server's, a new one when half of the old one's time is over.
func (a *authority) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.server != nil && a.server.Leaf.NotAfter.Sub(now) > serverLifetime/2 && now.After(a.server.Leaf.NotBefore) {
		return a.server, nil
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "xylem scheduler"}, NotBefore: now.Add(-api.Skew), NotAfter: now.Add(serverLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, host := range a.host {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, public, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	a.server = &tls.Certificate{Certificate: [][]byte{der, a.ca.Raw}, PrivateKey: key, Leaf: leaf}
	return a.server, err
}
