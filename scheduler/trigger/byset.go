package trigger

import (
	"fmt"
	"iter"
	"strings"
)

// BySet fires once, when all objects of a set are there, in the order of Keys. The firing is called "set".
type BySet struct {
	Keys []Key // 1 to 100,000, different
}

// Kind implements Rule.
func (BySet) Kind() string { return "by-set" }

func (r BySet) check(report func(parameter, what string)) {
	if len(r.Keys) == 0 {
		report("keys", "the set is empty")
	} else if err := checkKeys(r.Keys); err != nil {
		report("keys", err.Error())
	}
}

func (r BySet) prepare() prepared {
	index := make(map[Key]int, len(r.Keys))
	for i, k := range r.Keys {
		index[k] = i
	}
	return &keySet{r.Keys, index}
}

type keySet struct {
	keys  []Key
	index map[Key]int
}

func (s *keySet) takes(k Key) bool {
	_, ok := s.index[k]
	return ok
}

func (s *keySet) matcher() matcher {
	return &set{keySet: s, Missing: len(s.keys)}
}

type set struct {
	keySet  *keySet
	Held    []Object `json:"held,omitempty"` // by place in the set; without a key where it is missing
	Missing int      `json:"missing"`
}

func (s *set) put(c *cell, o Object) {
	if s.Held == nil {
		s.Held = make([]Object, len(s.keySet.keys))
	}
	s.Held[s.keySet.index[o.Key]] = o
	if s.Missing--; s.Missing == 0 {
		held := s.Held
		s.Held = nil
		c.fire("set", held)
		c.release(c.waited, false)
	}
}

func (s *set) check(instant) error {
	missing := len(s.keySet.keys)
	if s.Held == nil && s.Missing == 0 {
		return nil // it has fired
	}
	for i, o := range s.Held {
		if i < len(s.keySet.keys) && o.Key == s.keySet.keys[i] {
			missing--
		}
	}
	if missing != s.Missing || missing == 0 || s.Held != nil && len(s.Held) != len(s.keySet.keys) {
		return fmt.Errorf("its set of %d keys holds %d objects and lacks %d", len(s.keySet.keys), len(s.Held), s.Missing)
	}
	return nil
}

func (s *set) done() bool { return s.Missing == 0 }

func (s *set) waits() string {
	if s.Held == nil {
		return ""
	}
	return waitsFor("key", func(yield func(Key) bool) {
		for i, k := range s.keySet.keys {
			if s.Held[i].Key == "" && !yield(k) {
				return
			}
		}
	}, s.Missing)
}

// waitsFor names the first of the n that are missing.
func waitsFor(what string, missing iter.Seq[Key], n int) string {
	const most = 5
	var names []string
	for k := range missing {
		if len(names) == most {
			break
		}
		names = append(names, fmt.Sprintf("%.80s", k))
	}
	if n > 1 {
		what += "s"
	}
	line := "waits for " + what + " " + strings.Join(names, ", ")
	if n > most {
		line += fmt.Sprintf(" and %d more", n-most)
	}
	return line
}
