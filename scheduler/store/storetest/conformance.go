// Package storetest judges implementations of store.Store, and lets them fail.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xylem-project/xylem/scheduler/store"
)

// patience is how long news may take on a busy machine.
const patience = 20 * time.Second

// Store checks the contract of store.Store. open returns an empty one.
func Store(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"what was written is read":           testRead,
		"many items":                         testMany,
		"conditions":                         testConditions,
		"all or none":                        testAtomic,
		"invalid transactions":               testInvalid,
		"one of many writers wins":           testRace,
		"watch":                              testWatch,
		"watch ends":                         testWatchEnds,
		"a key is held and released":         testHold,
		"another holder keeps its key":       testHoldAgain,
		"ended contexts":                     testContext,
		"bytes belong to whoever calls":      testBytes,
		"a watcher sees the last of a flood": testFlood,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func put(t *testing.T, s store.Store, key, value string) int64 {
	t.Helper()
	revision, err := s.Write(t.Context(), store.Tx{Put: []store.Item{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// contents returns the items with a prefix as "key=value".
func contents(items []store.Item) []string {
	var all []string
	for _, item := range items {
		all = append(all, item.Key+"="+string(item.Value))
	}
	return all
}

func expect(t *testing.T, s store.Store, prefix string, want ...string) {
	t.Helper()
	items, err := s.Read(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(items); !slices.Equal(got, want) {
		t.Errorf("below %q are %q, want %q", prefix, got, want)
	}
}

func testRead(t *testing.T, s store.Store) {
	expect(t, s, "")
	first, second := put(t, s, "b/2", "two"), put(t, s, "b/1", "one")
	put(t, s, "a", "")
	put(t, s, "c", "three")
	expect(t, s, "b/", "b/1=one", "b/2=two")
	expect(t, s, "", "a=", "b/1=one", "b/2=two", "c=three")
	items, err := s.Read(t.Context(), "b/")
	if err != nil || items[0].Revision != second || items[1].Revision != first || first >= second {
		t.Errorf("%v %v, written as %d and %d", items, err, second, first)
	}
	if _, err := s.Write(t.Context(), store.Tx{Delete: []string{"b/1", "never was"}}); err != nil {
		t.Fatal(err)
	}
	expect(t, s, "b/", "b/2=two")
}

func testMany(t *testing.T, s store.Store) {
	const n = 2345
	var want []string
	for i := 0; i < n; i += 100 {
		var tx store.Tx
		for j := i; j < min(i+100, n); j++ {
			tx.Put = append(tx.Put, store.Item{Key: fmt.Sprintf("many/%05d", j), Value: []byte("v")})
			want = append(want, fmt.Sprintf("many/%05d=v", j))
		}
		if _, err := s.Write(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, s, "many/", want...)
}

func testConditions(t *testing.T, s store.Store) {
	revision := put(t, s, "key", "1")
	put(t, s, "other", "1")
	for _, c := range []struct {
		condition store.Condition
		holds     bool
	}{
		{store.Condition{Key: "key", Revision: revision}, true},
		{store.Condition{Key: "key", Revision: revision + 1}, false},
		{store.Condition{Key: "key", Revision: 0}, false},
		{store.Condition{Key: "key", Revision: store.Exists}, true},
		{store.Condition{Key: "absent", Revision: 0}, true},
		{store.Condition{Key: "absent", Revision: revision}, false},
		{store.Condition{Key: "absent", Revision: store.Exists}, false},
	} {
		_, err := s.Write(t.Context(), store.Tx{If: []store.Condition{c.condition}, Put: []store.Item{{Key: "written"}}})
		if c.holds && err != nil || !c.holds && !errors.Is(err, store.ErrConflict) {
			t.Errorf("%+v: %v", c.condition, err)
		}
	}
	put(t, s, "key", "2")
	if _, err := s.Write(t.Context(), store.Tx{If: []store.Condition{{Key: "key", Revision: revision}}}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a key that was written again: %v", err)
	}
}

func testAtomic(t *testing.T, s store.Store) {
	put(t, s, "a", "old")
	put(t, s, "b", "old")
	change := store.Tx{Put: []store.Item{{Key: "a", Value: []byte("new")}, {Key: "c", Value: []byte("new")}}, Delete: []string{"b"}}
	refused := change
	refused.If = []store.Condition{{Key: "a", Revision: store.Exists}, {Key: "b", Revision: 0}}
	if _, err := s.Write(t.Context(), refused); !errors.Is(err, store.ErrConflict) {
		t.Errorf("%v", err)
	}
	expect(t, s, "", "a=old", "b=old")
	revision, err := s.Write(t.Context(), change)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, s, "", "a=new", "c=new")
	items, _ := s.Read(t.Context(), "")
	for _, item := range items {
		if item.Revision != revision {
			t.Errorf("%s has revision %d, want %d", item.Key, item.Revision, revision)
		}
	}
}

func testInvalid(t *testing.T, s store.Store) {
	var large store.Tx
	for i := range store.MaxOps {
		large.Put = append(large.Put, store.Item{Key: fmt.Sprintf("large/%03d", i)})
	}
	if _, err := s.Write(t.Context(), large); err != nil {
		t.Errorf("%d keys: %v", store.MaxOps, err)
	}
	large.If = []store.Condition{{Key: "one too many"}}
	for name, tx := range map[string]store.Tx{
		"too many keys":     large,
		"twice":             {Put: []store.Item{{Key: "a"}, {Key: "a"}}},
		"put and delete":    {Put: []store.Item{{Key: "a"}}, Delete: []string{"a"}},
		"delete twice":      {Delete: []string{"a", "a"}},
		"no name":           {Put: []store.Item{{}}},
		"delete no name":    {Delete: []string{""}},
		"conditions beside": {If: make([]store.Condition, store.MaxOps+1)},
	} {
		if _, err := s.Write(t.Context(), tx); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testRace(t *testing.T, s store.Store) {
	revision := put(t, s, "term", "0")
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			tx := store.Tx{If: []store.Condition{{Key: "term", Revision: revision}}, Put: []store.Item{{Key: "term", Value: []byte("1")}}}
			if _, err := s.Write(t.Context(), tx); err == nil {
				wins.Add(1)
			} else if !errors.Is(err, store.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("%d won", wins.Load())
	}
}

// watch returns a channel of the contents below prefix.
func watch(t *testing.T, s store.Store, prefix string) <-chan []string {
	ctx, cancel := context.WithCancel(t.Context())
	news, done := make(chan []string, 10_000), make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, prefix, func(items []store.Item) { news <- contents(items) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err == nil {
			t.Error("a watch that ended has no error")
		}
	})
	return news
}

// await waits for contents, whatever comes before.
func await(t *testing.T, news <-chan []string, want ...string) {
	t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case got := <-news:
			if slices.Equal(got, want) {
				return
			}
		case <-timeout:
			t.Fatalf("no news of %q", want)
		}
	}
}

func testWatch(t *testing.T, s store.Store) {
	put(t, s, "w/a", "1")
	put(t, s, "x", "1")
	news := watch(t, s, "w/")
	await(t, news, "w/a=1")
	put(t, s, "w/b", "1")
	await(t, news, "w/a=1", "w/b=1")
	put(t, s, "w/a", "2")
	await(t, news, "w/a=2", "w/b=1")
	if _, err := s.Write(t.Context(), store.Tx{Put: []store.Item{{Key: "w/c"}}, Delete: []string{"w/a", "w/b"}}); err != nil {
		t.Fatal(err)
	}
	await(t, news, "w/c=")
}

func testWatchEnds(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	if err := s.Watch(ctx, "", func([]store.Item) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func testFlood(t *testing.T, s store.Store) {
	news := watch(t, s, "f/")
	for i := range 200 {
		put(t, s, "f/n", fmt.Sprint(i))
	}
	await(t, news, "f/n=199")
}

// hold holds a key until release is called.
func hold(t *testing.T, s store.Store, key, value string) (release func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	held, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Hold(ctx, store.Item{Key: key, Value: []byte(value)}, 2*time.Second, func() { close(held) })
	}()
	select {
	case <-held:
	case err := <-done:
		t.Fatalf("hold %s: %v", key, err)
	}
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("hold %s: %v", key, err)
		}
	})
}

func testHold(t *testing.T, s store.Store) {
	news := watch(t, s, "live/")
	await(t, news)
	release := hold(t, s, "live/a", "1")
	defer release()
	await(t, news, "live/a=1")
	expect(t, s, "live/", "live/a=1")
	release()
	await(t, news)
	expect(t, s, "live/")
}

func testHoldAgain(t *testing.T, s store.Store) {
	first := hold(t, s, "live/a", "1")
	defer first()
	second := hold(t, s, "live/a", "2")
	defer second()
	first()
	expect(t, s, "live/", "live/a=2")
}

func testContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, read := s.Read(ctx, "")
	_, write := s.Write(ctx, store.Tx{Put: []store.Item{{Key: "a"}}})
	watch := s.Watch(ctx, "", func([]store.Item) {})
	for _, err := range []error{read, write, watch} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
}

func testBytes(t *testing.T, s store.Store) {
	value := []byte("value")
	if _, err := s.Write(t.Context(), store.Tx{Put: []store.Item{{Key: "a", Value: value}}}); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X'
	items, err := s.Read(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	items[0].Value[0] = 'Y'
	expect(t, s, "a", "a=value")
}
