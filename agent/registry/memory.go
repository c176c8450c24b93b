package registry

import (
	"strings"
	"sync"
	"time"
)

const (
	redirectLife = 5 * time.Minute  // a storage URL is tried again for; when its signature has expired the registry is asked
	noAPILife    = 10 * time.Minute // a registry without the referrers API is believed to be one for
	maxRemember  = 4096             // entries; more make it forget all
)

// memory saves round trips: it remembers answers of registries for a while. What it says may be out of date, and is only ever
// a shortcut.
type memory struct {
	mu      sync.Mutex
	entries map[string]remembered
}

type remembered struct {
	value string
	until time.Time
}

func (m *memory) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; time.Now().Before(e.until) {
		return e.value
	}
	return ""
}

func (m *memory) set(key, value string, life time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == nil || len(m.entries) >= maxRemember {
		m.entries = map[string]remembered{}
	}
	m.entries[key] = remembered{value, time.Now().Add(life)}
}

// forget drops all entries whose keys begin with prefix.
func (m *memory) forget(prefix string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.entries {
		if strings.HasPrefix(key, prefix) {
			delete(m.entries, key)
		}
	}
}
