package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
)

func TestProgressLogsEachPartOnce(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out, slog.New(slog.NewJSONHandler(&out, nil)))
	p.update("a", 0, 10)
	p.update("a", 10, 10)
	p.update("a", 10, 10)
	p.update("b", 5, 0)
	p.update("c", 1, 2)
	p.done()
	var line struct {
		Msg, Part string
		Bytes     int
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Msg != "done" || line.Part != "a" || line.Bytes != 10 {
		t.Errorf("got %q, %v, want one line about part a", out.String(), err)
	}
}

// Bars end also for parts that never reached their total, as after an error.
func TestBarsEnd(t *testing.T) {
	var out bytes.Buffer
	b := newBars(&out)
	b.update("whole", 10, 10)
	b.update("half", 5, 10)
	b.update("unknown", 5, 0)
	b.done()
}

// ingests is a content store that downloads what the test says.
type ingests struct {
	content.IngestManager
	statuses [][]content.Status // one for each call; the last is repeated
}

func (s *ingests) ListStatuses(context.Context, ...string) ([]content.Status, error) {
	now := s.statuses[0]
	if len(s.statuses) > 1 {
		s.statuses = s.statuses[1:]
	}
	return now, nil
}

type recorded struct{ updates []string }

func (r *recorded) update(part string, done, total int64) {
	r.updates = append(r.updates, part+" "+bytesText(done)+"/"+bytesText(total))
}
func (r *recorded) done() {}

func TestWatchContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layer := content.Status{Ref: "layer-sha256:" + strings.Repeat("ab", 32), Offset: 1, Total: 4}
		config := content.Status{Ref: "config-sha256:" + strings.Repeat("cd", 32), Offset: 1, Total: 4}
		var r recorded
		stop := watchContent(t.Context(), &ingests{statuses: [][]content.Status{{config, layer}, {}}}, &r)
		time.Sleep(time.Second) // virtual
		stop()
		want := "layer abababababab 1 B/4 B, layer abababababab 4 B/4 B"
		if got := strings.Join(r.updates, ", "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
