package stream

// hot keeps the latest blocks of a share in memory: a block is relayed to all children in the moment in which it comes, and
// then no store has to read it back.
type hot struct {
	max, bytes int64
	blocks     map[int]*block
	order      []int // oldest first
}

func newHot(max int64) *hot { return &hot{max: max, blocks: map[int]*block{}} }

func (h *hot) add(number int, b *block) {
	if h.blocks[number] != nil || int64(len(b.stored)) > h.max {
		return
	}
	h.blocks[number] = b.hold()
	h.order = append(h.order, number)
	for h.bytes += int64(len(b.stored)); h.bytes > h.max; h.order = h.order[1:] {
		old := h.blocks[h.order[0]]
		delete(h.blocks, h.order[0])
		h.bytes -= int64(len(old.stored))
		old.release()
	}
}
