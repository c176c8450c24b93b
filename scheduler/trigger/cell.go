package trigger

import "slices"

// prepared is a Rule that is ready to be used in many sessions.
type prepared interface {
	// takes says whether an object of the bucket counts.
	takes(Key) bool
	matcher() matcher
}

// matcher is what a trigger knows of the objects that it takes together. It is a struct that JSON can write and read.
type matcher interface {
	// put takes an object, which is not there yet, and calls c.fire if that completes something.
	put(c *cell, o Object)
	// waits says what is still missing; "" if nothing has begun that is incomplete.
	waits() string
}

// What matchers may also do.
type (
	// timed ones do something by themselves.
	timed interface {
		next() instant // when; never: not before another event
		expire(c *cell)
	}
	// flushable ones can fire with what they hold.
	flushable interface{ flush(c *cell) }
	// finite ones are done some day.
	finite interface{ done() bool }
	// shared ones take objects of many sessions, and can forget those of one.
	shared interface{ withdraw(Session) }
	// counting ones want to know whose objects will not come.
	counting interface{ lost(*cell, Invocation) }
	// announced ones are told what to wait for.
	announced interface{ announce(*cell, []Key) error }
	// checked ones can be wrong if a snapshot was damaged.
	checked interface{ check(now instant) error }
	// controlled ones are told what is complete.
	controlled interface {
		control(c *cell, source Key, of GroupSet) error
	}
)

// cell is a trigger in a session, or across all.
type cell struct {
	timer
	ev      *Evaluator
	trigger *trigger
	session *session // nil: across
	matcher matcher
	since   instant // of the last event
	// watched are the runs of the rerun's source from which the trigger waits for an object, in the order in which they became known,
	// and some from which it does not any more.
	watched []*run
	waited  int // how many of them it does wait for
}

func (c *cell) put(o Object) {
	c.since = c.ev.now
	c.matcher.put(c, o)
	c.schedule()
}

// schedule sets the timer to what the matcher wants.
func (c *cell) schedule() {
	m, ok := c.matcher.(timed)
	if !ok {
		return
	}
	if c.session != nil && c.session.over {
		c.ev.timers.stop(&c.timer)
		return
	}
	c.ev.timers.set(&c.timer, m.next(), c)
}

func (c *cell) ring() {
	c.matcher.(timed).expire(c)
	c.schedule()
}

func (c *cell) rank() (session, what string) {
	if c.session == nil {
		return "", string(c.trigger.Name)
	}
	return string(c.session.id), string(c.trigger.Name)
}

func (c *cell) flush() {
	if m, ok := c.matcher.(flushable); ok && !c.session.over {
		m.flush(c)
		c.schedule()
	}
}

func (c *cell) withdraw(id Session) {
	if m, ok := c.matcher.(shared); ok {
		m.withdraw(id)
		c.schedule()
	}
}

// fire makes the function run. part tells the firings of the trigger in the session apart. The objects belong to the firing.
func (c *cell) fire(part string, objects []Object) {
	id := Invocation(string(c.trigger.Name) + "/" + part)
	s := c.session
	if s == nil {
		s = c.ev.open(Session(id))
		s.ending = true
	}
	if !s.step(c.trigger.Function) {
		return
	}
	f := Firing{Session: s.id, ID: id, Trigger: c.trigger.Name, Function: c.trigger.Function, Gets: c.trigger.Gets, Attempt: 1, Objects: objects}
	s.add(f)
	c.ev.out.Firings = append(c.ev.out.Firings, f)
}

// ignore says that an object is not passed on.
func (c *cell) ignore(o Object, why string) {
	c.ev.out.Ignored = append(c.ev.out.Ignored, Ignored{c.trigger.Name, o, why})
}

func (c *cell) watch(r *run) {
	c.watched = append(c.watched, r)
	c.waited++
}

// unwatch is told that a run need not be waited for. The list is cleaned when most of it is done with, so that it costs O(1) a run.
func (c *cell) unwatch() {
	c.waited--
	if len(c.watched) > 2*c.waited+16 {
		c.watched = slices.DeleteFunc(c.watched, func(r *run) bool { return !r.watchedBy(c.trigger) })
	}
}

// release stops watching up to limit runs, those known for longest, because the trigger does not need them any more. With cancel, those that
// no other trigger watches are cancelled; they are returned.
func (c *cell) release(limit int, cancel bool) (cancelled []Invocation) {
	for limit > 0 && len(c.watched) > 0 {
		r := c.watched[0]
		c.watched[0], c.watched = nil, c.watched[1:]
		if !r.watchedBy(c.trigger) {
			continue
		}
		limit--
		r.deliver(c.trigger)
		if cancel && r.missing() == nil {
			cancelled = append(cancelled, r.id)
			r.cancel("trigger " + string(c.trigger.Name) + " has enough")
		} else {
			r.schedule()
		}
	}
	return cancelled
}
