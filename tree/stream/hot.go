package stream

// hot keeps the latest blocks of a share in memory: a block is relayed to all children in the moment in which it comes, and
// then no store has to read it back.
type hot struct {
	max, bytes int64
	blocks     map[int][]byte
	order      []int // oldest first
}

func newHot(max int64) *hot { return &hot{max: max, blocks: map[int][]byte{}} }

func (h *hot) add(block int, stored []byte) {
	if _, again := h.blocks[block]; again || int64(len(stored)) > h.max {
		return
	}
	h.blocks[block] = stored
	h.order = append(h.order, block)
	for h.bytes += int64(len(stored)); h.bytes > h.max; h.order = h.order[1:] {
		h.bytes -= int64(len(h.blocks[h.order[0]]))
		delete(h.blocks, h.order[0])
	}
}
