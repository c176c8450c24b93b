package registryproxy

import (
	"sync"
	"time"
)

// maxFacts bounds the entries of one generation of facts.
const maxFacts = 16 << 10

// facts are what registries said, and when. What was not asked for in a long time is forgotten: there are two generations of
// maxFacts entries, and the elder goes when the younger is full. Safe for concurrent use.
type facts[K comparable, V any] struct {
	mu         sync.Mutex
	young, old map[K]fact[V]
}

type fact[V any] struct {
	value V
	at    time.Time
}

func (f *facts[K, V]) get(key K) (fact[V], bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.young[key]
	if !ok {
		if v, ok = f.old[key]; ok {
			f.put(key, v)
		}
	}
	return v, ok
}

// set notes a value that was true now.
func (f *facts[K, V]) set(key K, value V) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(key, fact[V]{value, time.Now()})
}

// put is called with mu held.
func (f *facts[K, V]) put(key K, v fact[V]) {
	if f.young == nil || len(f.young) >= maxFacts {
		f.young, f.old = map[K]fact[V]{}, f.young
	}
	f.young[key] = v
}

func (f *facts[K, V]) remove(key K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.young, key)
	delete(f.old, key)
}

// noted is a fact as it is kept over restarts.
type noted[K comparable, V any] struct {
	Key   K         `json:"k"`
	Value V         `json:"v"`
	At    time.Time `json:"t"`
}

// all returns the facts that are no older than within.
func (f *facts[K, V]) all(within time.Duration) []noted[K, V] {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := []noted[K, V]{}
	for _, generation := range []map[K]fact[V]{f.old, f.young} {
		for k, v := range generation {
			if v.age() < within {
				list = append(list, noted[K, V]{k, v.value, v.at})
			}
		}
	}
	return list
}

// restore adds facts. Those of the future are left out: the clock was put back, and nobody knows how old they are.
func (f *facts[K, V]) restore(list []noted[K, V]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, n := range list {
		if !n.At.After(now) {
			f.put(n.Key, fact[V]{n.Value, n.At})
		}
	}
}

// age returns how old a fact is.
func (f fact[V]) age() time.Duration { return time.Since(f.at) }
