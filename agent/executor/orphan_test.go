package executor

import (
	"strconv"
	"testing"
	"time"
)

// An instance is an orphan when the scheduler whose name its ID begins with has not asked for long.
func TestOrphans(t *testing.T) {
	e := &Executor{asked: map[string]time.Time{}}
	now := time.Now()
	old := &instance{id: "aaaa-1", began: now.Add(-time.Hour)}
	if !e.isOrphan(old, now) || e.isOrphan(&instance{id: "aaaa-2", began: now}, now) {
		t.Error("of a scheduler that has never asked, only what is old is an orphan")
	}
	e.heard("bbbb-")
	if !e.isOrphan(old, now) {
		t.Error("another scheduler's question counts")
	}
	e.heard("aaaa-")
	if e.isOrphan(old, time.Now()) || !e.isOrphan(old, time.Now().Add(orphanAfter+time.Second)) {
		t.Error("an instance is kept while its scheduler asks, and no longer")
	}
	for i := range 3 * maxSchedulers {
		e.heard(strconv.Itoa(i))
	}
	if len(e.asked) > maxSchedulers {
		t.Errorf("%d schedulers are remembered", len(e.asked))
	}
}
