package trigger

import (
	"errors"
	"fmt"
	"slices"
)

// DynamicJoin fires once, when all objects of a set are there that is announced while the session runs (Evaluator.Announce), in
// the order of the announcement; an empty set fires at once. Objects that are not of the set are ignored. The firing is called "join".
type DynamicJoin struct{}

// Kind implements Rule.
func (DynamicJoin) Kind() string { return "dynamic-join" }

func (DynamicJoin) check(func(parameter, what string)) {}
func (DynamicJoin) prepare() prepared                  { return DynamicJoin{} }
func (DynamicJoin) takes(Key) bool                     { return true }
func (DynamicJoin) matcher() matcher                   { return &join{Held: map[Key]Object{}} }

type join struct {
	Announced bool           `json:"announced"`
	Keys      []Key          `json:"keys,omitempty"`
	Missing   map[Key]bool   `json:"missing,omitempty"`
	Held      map[Key]Object `json:"held,omitempty"`
}

func (j *join) put(c *cell, o Object) {
	if j.Announced && !j.Missing[o.Key] {
		c.ignore(o, "its key is not of the set that was announced")
		return
	}
	j.Held[o.Key] = o
	delete(j.Missing, o.Key)
	j.fire(c)
}

func (j *join) announce(c *cell, keys []Key) error {
	if j.Announced {
		if !slices.Equal(j.Keys, keys) {
			return fmt.Errorf("%w: a set of %d keys was announced already, and this one of %d differs", ErrConflict, len(j.Keys), len(keys))
		}
		return nil
	}
	c.since = c.ev.now
	j.Announced, j.Keys = true, slices.Clone(keys)
	j.Missing = make(map[Key]bool, len(keys))
	all := make(map[Key]bool, len(keys))
	for _, k := range keys {
		all[k] = true
		if _, ok := j.Held[k]; !ok {
			j.Missing[k] = true
		}
	}
	j.ignoreOthers(c, all)
	j.fire(c)
	return nil
}

func (j *join) ignoreOthers(c *cell, all map[Key]bool) {
	var others []Key
	for k := range j.Held {
		if !all[k] {
			others = append(others, k)
		}
	}
	slices.Sort(others)
	for _, k := range others {
		c.ignore(j.Held[k], "its key is not of the set that was announced")
		delete(j.Held, k)
	}
}

func (j *join) fire(c *cell) {
	if !j.done() {
		return
	}
	objects := make([]Object, len(j.Keys))
	for i, k := range j.Keys {
		objects[i] = j.Held[k]
	}
	clear(j.Held)
	c.fire("join", objects)
	c.release(c.waited, false)
}

func (j *join) done() bool { return j.Announced && len(j.Missing) == 0 }

func (j *join) check(instant) error {
	if j.Held == nil {
		return errors.New("it has no place for objects")
	}
	return nil
}

func (j *join) waits() string {
	if !j.Announced {
		if len(j.Held) == 0 {
			return ""
		}
		return "waits for the announcement of its set, has " + count(len(j.Held), "object")
	}
	if len(j.Missing) == 0 {
		return ""
	}
	return waitsFor("key", func(yield func(Key) bool) {
		for _, k := range j.Keys {
			if j.Missing[k] && !yield(k) {
				return
			}
		}
	}, len(j.Missing))
}
