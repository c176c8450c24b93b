package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xylem-project/xylem/hack/nodelab"
)

func TestTableJudges(t *testing.T) {
	text := table([]nodelab.Figure{
		nodelab.Summary("warm_vs_overlayfs", "ratio", []float64{1.2, 1.0, 1.04}),
		nodelab.Summary("agent_rss_idle_bytes", "B", []float64{90 << 20, 81 << 20}),
	})
	for _, want := range []string{"| 1.040 | 1.000 | 1.200 | 3 | <= 1.05 | met |", "| 86 MiB | 81 MiB | 90 MiB | 2 | <= 80 MiB | **missed** |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestRewriteDoc(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	text := "before\n" + beginMark + "old\n" + endMark + "after\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finds the markers again
		if err := rewriteDoc(path, "| new |\n", time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := string(got)
	if !strings.HasPrefix(s, "before\n"+beginMark) || !strings.HasSuffix(s, endMark+"after\n") || strings.Contains(s, "old") || strings.Count(s, "| new |") != 1 {
		t.Errorf("got\n%s", s)
	}
	if err := rewriteDoc(filepath.Join("..", "..", "docs", "benchmarks.md")+".none", "", time.Now()); err == nil {
		t.Error("a document that is not there is no error")
	}
}

// TestDocHasMarkers guards the document that the command rewrites.
func TestDocHasMarkers(t *testing.T) {
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(text), beginMark) != 1 || strings.Count(string(text), endMark) != 1 {
		t.Error("docs/benchmarks.md lacks the markers")
	}
}
