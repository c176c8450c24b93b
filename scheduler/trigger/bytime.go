package trigger

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// ByTime fires at the end of windows with the objects that were put in them, in the order of their arrival; windows without objects do not fire.
// Windows begin with the first object of the session and follow each other without a gap. An object that is put at the very end
// of a window belongs to the next one. The end of the session ends the open window. Firings are called "1", "2", ...
type ByTime struct {
	Window time.Duration // length, more than 0
	// Slide is how often a window ends. 0 or Window: they tumble, each object is in one. Less: they overlap, an object is in up to
	// Window/Slide of them, at most 1000; the first ones are those that began before the first object.
	Slide time.Duration
}

const maxOverlap = 1000

// Kind implements Rule.
func (ByTime) Kind() string { return "by-time" }

func (r ByTime) check(report func(parameter, what string)) {
	if r.Window <= 0 || r.Window > maxTime {
		report("window", fmt.Sprintf("%v, must be more than 0, at most %v", r.Window, maxTime))
		return
	}
	switch {
	case r.Slide < 0 || r.Slide > r.Window:
		report("slide", fmt.Sprintf("%v, want 0 to the window's %v", r.Slide, r.Window))
	case r.Slide > 0 && r.Window/r.Slide > maxOverlap:
		report("slide", fmt.Sprintf("%v, want at least %v: an object would be in more than %d windows", r.Slide, r.Window/maxOverlap, maxOverlap))
	}
}

func (r ByTime) prepare() prepared {
	if r.Slide == 0 {
		r.Slide = r.Window
	}
	return r
}

func (ByTime) takes(Key) bool     { return true }
func (r ByTime) matcher() matcher { return &window{rule: r, Due: never} }

type window struct {
	rule   ByTime
	Open   bool      `json:"open"` // Origin is set
	Origin instant   `json:"origin"`
	Due    instant   `json:"due"` // end of the next window that fires
	Held   []arrival `json:"held,omitempty"`
	Fired  int       `json:"fired"`
}

// arrival is an object with the time of its arrival.
type arrival struct {
	Object Object  `json:"object"`
	At     instant `json:"at"`
	Passed bool    `json:"passed,omitempty"` // has been in a firing
}

func (w *window) put(c *cell, o Object) {
	now := c.ev.now
	if !w.Open {
		w.Open, w.Origin = true, now
	}
	if w.Due == never {
		slide := instant(w.rule.Slide)
		w.Due = now + slide - (now-w.Origin)%slide
	}
	w.Held = append(w.Held, arrival{Object: o, At: now})
}

func (w *window) next() instant { return w.Due }

func (w *window) expire(c *cell) {
	end := w.Due
	w.fire(c)
	w.drop(end.add(w.rule.Slide - w.rule.Window))
	if len(w.Held) == 0 {
		w.Due = never
	} else {
		w.Due = end.add(w.rule.Slide)
	}
}

// drop forgets the objects that came before.
func (w *window) drop(before instant) {
	keep := slices.IndexFunc(w.Held, func(t arrival) bool { return t.At >= before })
	if keep < 0 {
		keep = len(w.Held)
	}
	if w.Held = w.Held[keep:]; len(w.Held) == 0 {
		w.Held = nil
	}
}

func (w *window) fire(c *cell) {
	objects := make([]Object, len(w.Held))
	for i := range w.Held {
		objects[i] = w.Held[i].Object
		w.Held[i].Passed = true
	}
	w.Fired++
	c.fire(strconv.Itoa(w.Fired), objects)
}

// flush ends the open window if something in it has not been in any.
func (w *window) flush(c *cell) {
	if w.unpassed() > 0 {
		w.drop(c.ev.now.add(-w.rule.Window))
		w.fire(c)
	}
	w.Held, w.Due = nil, never
}

func (w *window) unpassed() (n int) {
	for i := len(w.Held) - 1; i >= 0 && !w.Held[i].Passed; i-- {
		n++
	}
	return n
}

func (w *window) withdraw(id Session) {
	w.Held = slices.DeleteFunc(w.Held, func(t arrival) bool { return t.Object.Session == id })
	if len(w.Held) == 0 {
		w.Due = never
	}
}

func (w *window) check(now instant) error {
	if w.Origin < 0 || w.Origin > now || w.Due <= now || w.Due != never && w.Due > now.add(w.rule.Slide) || (w.Due == never) != (len(w.Held) == 0) {
		return fmt.Errorf("at %v its window of %d objects, since %v, would end at %v", time.Duration(now), len(w.Held), time.Duration(w.Origin), time.Duration(w.Due))
	}
	if slices.ContainsFunc(w.Held, func(a arrival) bool { return a.At > now }) {
		return errors.New("it has objects that came later")
	}
	return nil
}

func (w *window) waits() string {
	if n := w.unpassed(); n > 0 {
		return "has " + count(n, "object") + " in the open window"
	}
	return ""
}
