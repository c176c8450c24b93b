package figures

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTableJudges(t *testing.T) {
	rows := []Row{AtMost("warm_vs_overlayfs", "warm", "<= 1.05", 1.05), Shown("none", "not measured"), AtMost("agent_rss_idle_bytes", "memory", "<= 80 MiB", 80<<20)}
	text := Table(rows, []Figure{
		Summary("warm_vs_overlayfs", "ratio", []float64{1.2, 1.0, 1.04}),
		Summary("agent_rss_idle_bytes", "B", []float64{90 << 20, 81 << 20}),
	})
	for _, want := range []string{"| 1.040 | 1.000 | 1.200 | 3 | <= 1.05 | met |", "| 86 MiB | 81 MiB | 90 MiB | 2 | <= 80 MiB | **missed** |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestRewriteDoc(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	text := "before\n" + Begin("bench") + "old\n" + End("bench") + "after\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time finds the markers again
		if err := RewriteDoc(path, "bench", "| new |\n", time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := string(got)
	if !strings.HasPrefix(s, "before\n"+Begin("bench")) || !strings.HasSuffix(s, End("bench")+"after\n") || strings.Contains(s, "old") || strings.Count(s, "| new |") != 1 {
		t.Errorf("got\n%s", s)
	}
	if err := RewriteDoc(path+".none", "bench", "", time.Now()); err == nil {
		t.Error("a document that is not there is no error")
	}
}

// TestDocHasMarkers guards the document that the benchmarks rewrite.
func TestDocHasMarkers(t *testing.T) {
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, bench := range []string{"bench-node", "bench-tree", "bench-proxy", "bench-fn"} {
		if strings.Count(string(text), Begin(bench)) != 1 || strings.Count(string(text), End(bench)) != 1 {
			t.Errorf("docs/benchmarks.md lacks the markers of %s", bench)
		}
	}
}
