package stream

// Node returns the node of a share, for tests that know only the share.
func (s *Share) Node() *Node { return s.node }
