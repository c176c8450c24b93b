package agent

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/xylem-project/xylem/blockfmt/convert"
)

// readAt reads a part of a file in a child process, without readahead of its own.
func readAt(t *testing.T, path string, off, n int64) []byte {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "dd", "if="+path, "bs=4096", fmt.Sprintf("skip=%d", off/4096), fmt.Sprintf("count=%d", n/4096), "status=none")
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return out.Bytes()
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o600))
}

func publicPEM(t *testing.T, key ed25519.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// nodeKeyIn returns a converter's key that lies in dir.
func nodeKeyIn(t *testing.T, dir string) ed25519.PrivateKey {
	t.Helper()
	key, err := convert.GenerateKey(filepath.Join(dir, "key"))
	must(t, err)
	return key
}

func publicOf(key ed25519.PrivateKey) []ed25519.PublicKey {
	return []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
}
