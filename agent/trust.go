package agent

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

// ReadPublicKeys reads PEM files (PKIX, "PUBLIC KEY") of ed25519 public keys, one or more a file.
func ReadPublicKeys(files []string) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("trusted key: %w", err)
		}
		before := len(keys)
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
			key, ok := parsed.(ed25519.PublicKey)
			if err != nil || !ok {
				return nil, fmt.Errorf("trusted key %s: want ed25519 public keys in PEM form (PUBLIC KEY)", file)
			}
			keys = append(keys, key)
		}
		if len(keys) == before {
			return nil, fmt.Errorf("trusted key %s: no PEM block in it", file)
		}
	}
	return keys, nil
}

// trustedKeys are the converters whose block images are used here: those configured and this node's own.
func trustedKeys(cfg Config, own ed25519.PrivateKey) ([]ed25519.PublicKey, error) {
	keys, err := ReadPublicKeys(cfg.TrustedKeys)
	return append(keys, own.Public().(ed25519.PublicKey)), err
}
