package containerd24

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBuild uses the cache that all tests share: a cold one costs minutes.
func TestBuild(t *testing.T) {
	dir, err := Build(t.Context(), "../cache")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "containerd"), "--version").Output()
	if err != nil || !strings.Contains(string(out), Version) {
		t.Errorf("containerd --version: %q, %v", out, err)
	}
}
