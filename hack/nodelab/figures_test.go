package nodelab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestFigures(t *testing.T) {
	figures := []Figure{
		Summary("odd", "s", []float64{3, 1, 2}),
		Summary("even", "s", []float64{4, 1, 2, 3}),
		Ratio("ratio", []float64{1, 9, 4}, []float64{2, 3, 4}),
	}
	want := []Figure{{"odd", 2, "s", 3, 1, 3}, {"even", 2.5, "s", 4, 1, 4}, {"ratio", 1, "ratio", 3, 0.5, 3}}
	path := filepath.Join(t.TempDir(), "out", "figures.json")
	if err := WriteFigures(path, figures); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []Figure
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// TestStaleLabIsRemoved makes a directory as a killed lab leaves it: there, but locked by nobody.
func TestStaleLabIsRemoved(t *testing.T) {
	parent := t.TempDir()
	stale, lock, err := lockedDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := removeStale(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); err != nil {
		t.Fatalf("the directory of a lab that lives was removed: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := removeStale(parent); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the directory of a dead lab is left: %v", err)
	}
}
