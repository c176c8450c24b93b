package cache

import (
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
)

// entry is what eviction can take: a compressed block, the decompressed data of a blob that is not open, or a whole file.
type entry struct {
	id         blockfmt.BlockID // if idle and plain are nil
	idle       *idleBlob
	plain      plainFile // "": not one
	size       int64     // bytes on disk
	visited    bool      // since the hand passed
	prev, next *entry
}

func (e *entry) isBlock() bool { return e.idle == nil && e.plain == "" }

// idleBlob is a blob that is not open.
type idleBlob struct {
	name, dir string // of the files
	blob      digest.Digest
	size      int64 // uncompressed bytes
	valid     int64 // of them on disk
}

// sieve orders entries for eviction by the SIEVE algorithm: a hand goes from old to new and takes what was not visited
// since it passed. One long scan, such as a whole image that is read once, does not push out what is read again and again.
type sieve struct {
	newest, oldest, hand *entry
}

func (s *sieve) insert(e *entry) {
	e.prev, e.next = nil, s.newest // next is older
	if s.newest != nil {
		s.newest.prev = e
	}
	s.newest = e
	if s.oldest == nil {
		s.oldest = e
	}
}

func (s *sieve) remove(e *entry) {
	if s.hand == e {
		s.hand = e.prev
	}
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.newest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.oldest = e.prev
	}
	e.prev, e.next = nil, nil
}

// victim returns the entry to evict next, nil if all are spared. It looks at each entry twice at most.
func (s *sieve) victim(n int, spared func(*entry) bool) *entry {
	for range 2*n + 1 {
		if s.hand == nil {
			if s.hand = s.oldest; s.hand == nil {
				return nil
			}
		}
		e := s.hand
		if !e.visited && !spared(e) {
			return e
		}
		e.visited = false
		s.hand = e.prev
	}
	return nil
}

// insert adds an entry to the books; mu is held.
func (c *Cache) insert(e *entry) {
	switch {
	case e.plain != "":
		c.plain[e.plain] = e
	case e.idle != nil:
		c.idle[e.idle.name] = e
	default:
		c.blocks[e.id] = e
	}
	c.order.insert(e)
	c.used += e.size
}

// remove takes an entry off the books; mu is held.
func (c *Cache) remove(e *entry) {
	switch {
	case e.plain != "":
		delete(c.plain, e.plain)
	case e.idle != nil:
		delete(c.idle, e.idle.name)
	default:
		delete(c.blocks, e.id)
	}
	c.order.remove(e)
	c.used -= e.size
}

// fruitless is how long nothing is evicted after it was not possible to evict enough: to find that out takes a look at
// every block.
const fruitless = time.Second

// makeRoom evicts, if need be, until size more bytes fit into the budget, and says whether they do.
func (c *Cache) makeRoom(size int64) bool {
	over := func() int64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.used + size - c.cfg.Budget
	}
	if over() <= 0 {
		return true
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	if time.Now().Before(c.pointless) {
		return over() <= 0
	}
	for n := over(); n > 0; n = over() {
		if c.evictLocked(n+c.cfg.Budget/50) < n { // more than needed, so that this is rare
			c.pointless = time.Now().Add(fruitless)
			return false
		}
	}
	return true
}

// evict frees size bytes of disk, or what can be freed of them, whatever the budget says.
func (c *Cache) evict(size int64) (freed int64) {
	c.evicting.Lock()
	defer c.evicting.Unlock()
	return c.evictLocked(max(size, c.cfg.Budget/50))
}

func (c *Cache) evictLocked(size int64) (freed int64) {
	needed := c.neededBlocks()
	spared := func(e *entry) bool { return e.isBlock() && needed[e.id] }
	for freed < size {
		c.mu.Lock()
		e := c.order.victim(len(c.blocks)+len(c.idle)+len(c.plain), spared)
		if e == nil {
			c.mu.Unlock()
			break
		}
		doomed := c.unlink(e)
		c.mu.Unlock()
		for _, path := range doomed {
			_ = os.Remove(path) // what stays is found by the next Open
		}
		freed += e.size
	}
	return freed
}

// unlink takes an entry off the books and returns the files to remove; mu is held. A blob's files are moved away first:
// its name may be opened anew at once, and to remove a large file takes too long for the lock.
func (c *Cache) unlink(e *entry) []string {
	c.remove(e)
	var paths []string
	switch {
	case e.plain != "":
		paths = []string{c.plainPath(e.plain)}
	case e.idle != nil:
		paths = []string{c.path(e.idle.dir, e.idle.name+mapSuffix), c.path(e.idle.dir, e.idle.name)}
	default:
		return []string{c.blockPath(e.id)}
	}
	var doomed []string
	for _, path := range paths {
		tmp := c.tmp()
		if os.Rename(path, tmp) == nil {
			doomed = append(doomed, tmp)
		}
	}
	return doomed
}

// neededBlocks returns the blocks that open blobs do not have decompressed yet: a mount needs those.
func (c *Cache) neededBlocks() map[blockfmt.BlockID]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	needed := map[blockfmt.BlockID]bool{}
	for _, b := range c.open {
		for i := range b.ix.Len() {
			if !b.have.get(i) {
				needed[b.ix.Ref(i).ID] = true
			}
		}
	}
	return needed
}
