package convert

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/xylem-project/xylem/blockfmt"
)

const keyType = "PRIVATE KEY"

// LoadKey reads a converter's key, ed25519 as PKCS #8 in PEM. It returns ErrNotFound if there is no file, ErrUnsupported for
// another kind of key.
func LoadKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("converter key: %w", fileKind(err))
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyType {
		return nil, fmt.Errorf("converter key %s: no PEM block %q: %w", path, keyType, blockfmt.ErrCorrupt)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("converter key %s: %w: %w", path, err, blockfmt.ErrCorrupt)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("converter key %s is %T, want ed25519: %w", path, parsed, blockfmt.ErrUnsupported)
	}
	return key, nil
}

// GenerateKey reads the converter's key from path and makes one, readable by the owner only, if there is none. Of several
// that make one at the same time all get the same.
func GenerateKey(path string) (ed25519.PrivateKey, error) {
	key, err := LoadKey(path)
	if !errors.Is(err, blockfmt.ErrNotFound) {
		return key, err
	}
	if err := createKey(path); err != nil {
		return nil, fmt.Errorf("make converter key: %w", err)
	}
	return LoadKey(path)
}

// createKey writes a new key beside path and links it there: an existing key is never replaced, a partial one never seen.
func createKey(path string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: keyType, Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}
