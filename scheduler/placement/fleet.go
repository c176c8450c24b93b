package placement

import (
	"cmp"
	"slices"
	"sync/atomic"
)

// member is an instance of a policy.
type member struct {
	id   Instance
	hash uint64 // of id
	load atomic.Int64
	gone atomic.Bool
	only *route // to this one

	served float64 // picks of late, of adaptive; needs the policy's lock
}

// count changes the load, and leaves none of it in total once the member is gone, whichever comes first.
func (m *member) count(total *atomic.Int64, n int64) {
	m.load.Add(n)
	total.Add(n)
	if m.gone.Load() {
		total.Add(-m.load.Swap(0))
	}
}

// fleet is the instances of a policy and their load. Changes need the policy's lock, everything else may run beside them.
type fleet struct {
	view   atomic.Pointer[view]
	total  atomic.Int64 // load of all
	ticket atomic.Uint64
}

// view is the members at one time; it does not change.
type view struct {
	list []*member // by id
	byID map[Instance]*member
}

var nobody = &view{}

func (f *fleet) members() *view {
	if v := f.view.Load(); v != nil {
		return v
	}
	return nobody
}

// join takes in an instance, and returns nil if it is there already.
func (f *fleet) join(id Instance) *member {
	v := f.members()
	if v.byID[id] != nil {
		return nil
	}
	m := &member{id: id, hash: mix(uint64(id) + 1)}
	m.only = &route{[]share{{m, 1}}}
	f.show(append(slices.Clone(v.list), m))
	return m
}

// leave takes out an instance, and returns nil if it is not there.
func (f *fleet) leave(id Instance) *member {
	v := f.members()
	m := v.byID[id]
	if m == nil {
		return nil
	}
	f.show(slices.DeleteFunc(slices.Clone(v.list), func(o *member) bool { return o == m }))
	m.gone.Store(true)
	m.count(&f.total, 0)
	return m
}

func (f *fleet) show(list []*member) {
	slices.SortFunc(list, func(a, b *member) int { return cmp.Compare(a.id, b.id) })
	v := &view{list, make(map[Instance]*member, len(list))}
	for _, m := range list {
		v.byID[m.id] = m
	}
	f.view.Store(v)
}

// Assigned implements LoadAware.
func (f *fleet) Assigned(id Instance) {
	if m := f.members().byID[id]; m != nil {
		m.count(&f.total, 1)
	}
}

// Done implements LoadAware.
func (f *fleet) Done(id Instance) {
	if m := f.members().byID[id]; m != nil {
		m.count(&f.total, -1)
	}
}

// spread picks without a hint: of two instances, the next in turn and a random one, the one with less load.
func (f *fleet) spread() (Instance, bool) {
	list := f.members().list
	n := uint64(len(list))
	if n == 0 {
		return 0, false
	}
	t := f.ticket.Add(1)
	a, b := list[t%n], list[mix(t)%n]
	if b.load.Load() < a.load.Load() {
		a = b
	}
	return a.id, true
}

// mix turns a number into one that looks random (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
