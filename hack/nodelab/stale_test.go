package nodelab

import (
	"os"
	"testing"
)

// TestStaleLabIsRemoved makes a directory as a killed lab leaves it: there, but locked by nobody.
func TestStaleLabIsRemoved(t *testing.T) {
	parent := t.TempDir()
	stale, lock, err := lockedDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err != nil {
		t.Fatalf("the directory of a lab that lives was removed: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := RemoveStale(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead lab is left: %v", err)
	}
}
