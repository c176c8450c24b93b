package api

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Skew is how far clocks of a cluster's machines may be apart without harm to joins and sessions: certificates are valid from
// that long before they are made. Admit allows for skewAdmit after their end.
const (
	Skew      = 2 * time.Hour
	skewAdmit = 5 * time.Minute
)

// ErrCredential says that a certificate is none of this cluster's for that peer, or not any more.
var ErrCredential = errors.New("credential refused")

// PeerID returns the text form of the peer ID that belongs to a key.
func PeerID(key ed25519.PublicKey) (string, error) {
	public, err := crypto.UnmarshalEd25519PublicKey(key)
	if err != nil {
		return "", err
	}
	id, err := peer.IDFromPublicKey(public)
	return id.String(), err
}

// PeerURI is the name in an agent's certificate.
func PeerURI(peer string) *url.URL { return &url.URL{Scheme: "xylem", Host: "agent", Path: "/" + peer} }

// VerifyCredential returns the peer ID of the agent whose certificate (DER) that is. It must be signed by the cluster's CA, valid
// now, and made for that peer's key.
func VerifyCredential(credential []byte, ca *x509.Certificate, now time.Time) (string, error) {
	cert, err := x509.ParseCertificate(credential)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCredential, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: usage, CurrentTime: now}); err != nil {
		return "", fmt.Errorf("%w: %w", ErrCredential, err)
	}
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("%w: its key is not ed25519", ErrCredential)
	}
	id, err := PeerID(key)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCredential, err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != PeerURI(id).String() {
		return "", fmt.Errorf("%w: it is made for %v, its key is that of %s", ErrCredential, cert.URIs, id)
	}
	return id, nil
}

// Pin returns what a join token says of a CA: the SHA-256 of its public key.
func Pin(ca *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(ca.RawSubjectPublicKeyInfo) }

// ValidPeerID returns an error if that is not the text form of an agent's peer ID.
func ValidPeerID(id string) error {
	decoded, err := peer.Decode(id)
	if err != nil || decoded.String() != id {
		return fmt.Errorf("%.80q is not a peer ID", id)
	}
	return nil
}
