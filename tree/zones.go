package tree

import "slices"

// zoneTable numbers the zones of the members. Numbers are used again, so they stay as small as there are zones.
type zoneTable struct {
	numbers map[string]int32
	zones   []zoneUse
	free    []int32
}

type zoneUse struct {
	name    string
	members int
}

func newZoneTable() zoneTable { return zoneTable{numbers: map[string]int32{}} }

func (t *zoneTable) use(name string) int32 {
	number, ok := t.numbers[name]
	if !ok {
		if n := len(t.free); n > 0 {
			number, t.free = t.free[n-1], t.free[:n-1]
		} else {
			number, t.zones = int32(len(t.zones)), append(t.zones, zoneUse{})
		}
		t.numbers[name] = number
		t.zones[number].name = name
	}
	t.zones[number].members++
	return number
}

func (t *zoneTable) drop(number int32) {
	z := &t.zones[number]
	if z.members--; z.members == 0 {
		delete(t.numbers, z.name)
		t.free = append(t.free, number)
	}
}

// The kinds of zoned sets; a place is in at most one set of each kind.
const (
	setDegree = iota
	setRoomy
	setForeign
	setKinds
)

// handle is where a place is in a set. The zero handle is in none.
type handle struct{ zone, inZone, inAll int32 } // indexes plus one

// zonedSet is a set of places that finds one of a given zone. All operations take constant time.
type zonedSet struct {
	kind  int
	all   []*place
	zones [][]*place
}

func (z *zonedSet) add(p *place, zone int32) {
	for int(zone) >= len(z.zones) {
		z.zones = append(z.zones, nil)
	}
	z.all = append(z.all, p)
	z.zones[zone] = append(z.zones[zone], p)
	p.handles[z.kind] = handle{zone + 1, int32(len(z.zones[zone])), int32(len(z.all))}
}

// remove does nothing if p is in no set of the kind.
func (z *zonedSet) remove(p *place) {
	h := p.handles[z.kind]
	if h == (handle{}) {
		return
	}
	list := z.zones[h.zone-1]
	moved := list[len(list)-1]
	list[h.inZone-1], moved.handles[z.kind].inZone = moved, h.inZone
	z.zones[h.zone-1] = list[:len(list)-1]
	moved = z.all[len(z.all)-1]
	z.all[h.inAll-1], moved.handles[z.kind].inAll = moved, h.inAll
	z.all = z.all[:len(z.all)-1]
	p.handles[z.kind] = handle{}
}

// in returns a place of the zone, nil if there is none.
func (z *zonedSet) in(zone int32) *place {
	if int(zone) >= len(z.zones) || len(z.zones[zone]) == 0 {
		return nil
	}
	return z.zones[zone][len(z.zones[zone])-1]
}

// pick returns a place, of the zone if there is one; nil if the set is empty.
func (z *zonedSet) pick(zone int32) *place {
	if p := z.in(zone); p != nil || len(z.all) == 0 {
		return p
	}
	return z.all[len(z.all)-1]
}

// fullest is a heap of places, the fullest first.
type fullest []*place

func (f *fullest) add(p *place) {
	p.rank = int32(len(*f))
	*f = append(*f, p)
	f.fix(p)
}

func (f *fullest) remove(p *place) {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	if last != p {
		(*f)[p.rank], last.rank = last, p.rank
		f.fix(last)
	}
}

// fix moves p to where it belongs.
func (f fullest) fix(p *place) {
	for p.rank > 0 && p.fuller(f[(p.rank-1)/2]) {
		f.swap(p, f[(p.rank-1)/2])
	}
	for 2*p.rank+1 < int32(len(f)) {
		child := f[2*p.rank+1]
		if right := 2*p.rank + 2; right < int32(len(f)) && f[right].fuller(child) {
			child = f[right]
		}
		if !child.fuller(p) {
			return
		}
		f.swap(p, child)
	}
}

func (f fullest) swap(p, q *place) {
	p.rank, q.rank = q.rank, p.rank
	f[p.rank], f[q.rank] = p, q
}

// first returns a place that holds as much as any; of the zone, if one of the first few is.
func (f fullest) first(zone int32) *place {
	few := f[:min(len(f), 15)]
	i := slices.IndexFunc(few, func(p *place) bool { return p.zone == zone && p.held == f[0].held })
	return f[max(i, 0)]
}
