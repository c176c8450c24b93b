package invoke

import "time"

// makeRoom stops the instance that was idle longest, of any pool but one that wants room and cannot have it, if that can help. Who needs more
// room asks again.
func (d *Dispatcher) makeRoom(wants *pool) {
	if !d.fleet.CouldHold(wants.fn) {
		return
	}
	var of *pool
	var oldest time.Time
	for _, p := range d.all() {
		if p == wants {
			continue
		}
		if used, ok := p.idleSince(); ok && (of == nil || used.Before(oldest)) {
			of, oldest = p, used
		}
	}
	if of != nil {
		of.yield()
	}
}

// idleSince returns when the instance was used last that was used least recently of those that the pool may give up.
func (p *pool) idleSince() (time.Time, bool) {
	least, _ := p.d.wanted(p.fn)
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := p.idlest(); i != nil && len(p.instances) > least {
		return i.used, true
	}
	return time.Time{}, false
}

// yield stops that instance.
func (p *pool) yield() {
	p.mu.Lock()
	i := p.idlest()
	if i != nil {
		p.drop(i)
	}
	p.mu.Unlock()
	if i != nil {
		p.d.cfg.Log.Info("idle instance makes room", "function", p.fn.ID(), "instance", i.id)
		p.d.stop(i.node, i.id, p.fn)
	}
}

// idlest returns the instance without invocations that was used least recently, nil if there is none. Callers hold mu.
func (p *pool) idlest() (found *instance) {
	for _, i := range p.idle {
		if i.inFlight == 0 && (found == nil || i.used.Before(found.used)) {
			found = i
		}
	}
	return found
}
