package trigger

// Immediate fires for every object. Firings are called by the key.
type Immediate struct{}

// Kind implements Rule.
func (Immediate) Kind() string { return "immediate" }

func (Immediate) check(func(parameter, what string)) {}
func (Immediate) prepare() prepared                  { return Immediate{} }
func (Immediate) takes(Key) bool                     { return true }
func (Immediate) matcher() matcher                   { return &each{} }

// each fires for each object that it is given: it has nothing to remember.
type each struct{}

func (*each) put(c *cell, o Object) { c.fire(string(o.Key), []Object{o}) }
func (*each) waits() string         { return "" }
