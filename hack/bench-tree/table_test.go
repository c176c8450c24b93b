package main

import (
	"os"
	"strings"
	"testing"

	"github.com/xylem-project/xylem/hack/figures"
)

// TestDocHasMarkers guards the document that the command rewrites.
func TestDocHasMarkers(t *testing.T) {
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(text), figures.Begin("bench-tree")) != 1 || strings.Count(string(text), figures.End("bench-tree")) != 1 {
		t.Error("docs/benchmarks.md lacks the markers")
	}
}
