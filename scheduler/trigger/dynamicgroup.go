package trigger

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// DynamicGroup gathers objects by their group and fires for each group once, when all controls are in that say it is complete
// (Evaluator.Control), with the objects in the order of their arrival. Objects that come later are ignored, so a source says that a group is
// complete after it has put the last one. Groups without objects do not fire. Firings are called by the group.
type DynamicGroup struct {
	// Controls are the sources that must say so, up to 100,000. None: they are announced while the session runs (Evaluator.Announce).
	Controls []Key
}

// GroupSet is a group, or all.
type GroupSet struct {
	Group Group
	All   bool // whatever Group says
}

// Kind implements Rule.
func (DynamicGroup) Kind() string { return "dynamic-group" }

func (r DynamicGroup) check(report func(parameter, what string)) {
	if err := checkKeys(r.Controls); err != nil {
		report("controls", err.Error())
	}
}

func (r DynamicGroup) prepare() prepared { return r }
func (DynamicGroup) takes(Key) bool      { return true }

func (r DynamicGroup) matcher() matcher {
	g := &groups{Groups: map[Group]*group{}, In: map[Key]bool{}}
	if len(r.Controls) > 0 {
		g.expect(r.Controls)
	}
	return g
}

type groups struct {
	Known    bool             `json:"known"` // Expected is
	Expected map[Key]bool     `json:"expected,omitempty"`
	In       map[Key]bool     `json:"in,omitempty"` // whose controls for all groups are in
	Groups   map[Group]*group `json:"groups,omitempty"`
}

type group struct {
	Held  []Object     `json:"held,omitempty"`
	In    map[Key]bool `json:"in,omitempty"` // whose controls for this group alone are in
	Fired bool         `json:"fired,omitempty"`
}

func (g *groups) expect(controls []Key) {
	g.Known = true
	g.Expected = make(map[Key]bool, len(controls))
	for _, k := range controls {
		g.Expected[k] = true
	}
}

func (g *groups) group(name Group) *group {
	if g.Groups[name] == nil {
		g.Groups[name] = &group{}
	}
	return g.Groups[name]
}

func (g *groups) put(c *cell, o Object) {
	of := g.group(o.Group)
	if g.complete(of) {
		c.ignore(o, "all controls of its group are in")
		return
	}
	of.Held = append(of.Held, o)
}

// complete says whether all controls of a group are in. Those for the group alone and those for all are kept apart.
func (g *groups) complete(of *group) bool {
	return g.Known && len(g.In)+len(of.In) == len(g.Expected)
}

func (g *groups) announce(c *cell, controls []Key) error {
	if g.Known {
		if len(controls) != len(g.Expected) || slices.ContainsFunc(controls, func(k Key) bool { return !g.Expected[k] }) {
			return fmt.Errorf("%w: %d controls are declared or announced already, and these %d differ", ErrConflict, len(g.Expected), len(controls))
		}
		return nil
	}
	c.since = c.ev.now
	g.expect(controls)
	stranger := func(k Key, _ bool) bool { return !g.Expected[k] }
	maps.DeleteFunc(g.In, stranger)
	for _, of := range g.Groups {
		maps.DeleteFunc(of.In, stranger)
	}
	g.fire(c, slices.Sorted(maps.Keys(g.Groups)))
	return nil
}

func (g *groups) control(c *cell, source Key, of GroupSet) error {
	if g.Known && !g.Expected[source] {
		return fmt.Errorf("%w: control of %.80q, which is none of the %d that are expected", ErrInvalid, source, len(g.Expected))
	}
	if !g.In[source] && len(g.In) >= maxKeys || !of.All && g.Groups[of.Group] == nil && len(g.Groups) >= maxKeys {
		return fmt.Errorf("%w: controls of %d sources and %d groups are in, at most %d of each", ErrInvalid, len(g.In), len(g.Groups), maxKeys)
	}
	c.since = c.ev.now
	if of.All {
		g.controlAll(c, source)
		return nil
	}
	if group := g.group(of.Group); !g.In[source] && !group.Fired {
		if group.In == nil {
			group.In = map[Key]bool{}
		}
		group.In[source] = true
		g.fire(c, []Group{of.Group})
	}
	return nil
}

// controlAll takes O(groups) time; but it comes once for each source.
func (g *groups) controlAll(c *cell, source Key) {
	if g.In[source] {
		return
	}
	g.In[source] = true
	for _, of := range g.Groups {
		delete(of.In, source)
	}
	g.fire(c, slices.Sorted(maps.Keys(g.Groups)))
}

// fire fires the groups that are complete.
func (g *groups) fire(c *cell, names []Group) {
	for _, name := range names {
		of := g.Groups[name]
		if !g.complete(of) || of.Fired {
			continue
		}
		objects := of.Held
		of.Held, of.Fired = nil, true
		if len(objects) > 0 {
			c.fire(string(name), objects)
		}
	}
	if g.done() {
		c.release(c.waited, false)
	}
}

func (g *groups) done() bool { return g.Known && len(g.In) == len(g.Expected) }

func (g *groups) check(instant) error {
	if g.Groups == nil || g.In == nil {
		return errors.New("it has no place for groups or controls")
	}
	for name, of := range g.Groups {
		if of == nil {
			return fmt.Errorf("there is nothing of group %.80q", name)
		}
	}
	return nil
}

func (g *groups) waits() string {
	waiting := 0
	for _, of := range g.Groups {
		if len(of.Held) > 0 {
			waiting++
		}
	}
	switch {
	case waiting == 0:
		return ""
	case !g.Known:
		return "waits for the announcement of its controls, holds objects of " + count(waiting, "group")
	}
	missing := slices.Sorted(func(yield func(Key) bool) {
		for k := range g.Expected {
			if !g.In[k] && !yield(k) {
				return
			}
		}
	})
	return fmt.Sprintf("holds objects of %s, %s", count(waiting, "group"), waitsFor("control", slices.Values(missing), len(missing)))
}
