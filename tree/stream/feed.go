package stream

import "slices"

// A Feed says what one child gets unasked, and in which order. Calls come one at a time.
type Feed interface {
	// Next returns the block to push now. ready says of a block whether it may be pushed: that the child lacks it, that it
	// is here, and that it travels in a stripe which the child is fed with.
	Next(ready func(block int) bool) (block int, ok bool)
	// Missed tells that a sibling of the child demands a block.
	Missed(block int)
}

// maxMisses is how many of the siblings' latest misses are remembered.
const maxMisses = 64

// InOrder returns a Feed of an image with so many blocks: first what siblings missed of late, then the blocks of order, such as
// a startup record, then all others by number.
func InOrder(blocks int, order []int) Feed {
	f := &inOrder{order: make([]int, 0, blocks)}
	seen := newBitset(blocks)
	add := func(i int) {
		if i >= 0 && i < blocks && !seen.has(i) {
			seen.add(i)
			f.order = append(f.order, i)
		}
	}
	for _, i := range order {
		add(i)
	}
	for i := range blocks {
		add(i)
	}
	return f
}

type inOrder struct {
	order  []int
	misses []int
}

func (f *inOrder) Next(ready func(block int) bool) (int, bool) {
	if at := slices.IndexFunc(f.misses, ready); at >= 0 {
		block := f.misses[at]
		f.misses = slices.Delete(f.misses, at, at+1)
		return block, true
	}
	if at := slices.IndexFunc(f.order, ready); at >= 0 {
		return f.order[at], true
	}
	return 0, false
}

func (f *inOrder) Missed(block int) {
	if slices.Contains(f.misses, block) {
		return
	}
	if len(f.misses) == maxMisses {
		f.misses = slices.Delete(f.misses, 0, 1)
	}
	f.misses = append(f.misses, block)
}
