package metadata

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestLocate(t *testing.T) {
	const page = blockSize
	shared := file(page, Extent{0, page, 0, 7 * page})
	tree := &Tree{Devices: devices(20, 20), Root: directory(map[string]*Inode{
		"a":    file(5000, Extent{0, 5000, 0, 0}),
		"b":    file(3*page, Extent{0, page, 0, 3 * page}, Extent{page, 2 * page, 1, 0}),
		"copy": file(page, Extent{0, page, 0, 3 * page}),
		"d":    directory(map[string]*Inode{"shared": shared}),
		"more": file(4*page, Extent{0, 4 * page, 0, 3 * page}),
		"z":    shared,
		"hole": file(page),
	})}
	l := NewLocator(tree)
	for _, test := range []struct {
		device int
		off, n int64
		want   []Piece
	}{
		{0, 0, page, []Piece{{"a", 0, page}}},
		{0, page, page, []Piece{{"a", page, 5000 - page}}},
		{0, 5000, 100, nil},
		{0, 2 * page, page, nil},
		{0, 100, 100, []Piece{{"a", 100, 100}}},
		{0, 0, 20 * page, []Piece{{"a", 0, 5000}, {"b", 0, page}, {"more", page, 3 * page}, {"d/shared", 0, page}}},
		{1, page - 1, 2, []Piece{{"b", 2*page - 1, 2}}},
		{1, 2 * page, 100 * page, nil},
		{0, 0, 0, nil},
		{2, 0, page, nil},
		{-1, 0, page, nil},
	} {
		if got := l.Locate(test.device, test.off, test.n); !slices.Equal(got, test.want) {
			t.Errorf("%d bytes at %d of device %d: %v, want %v", test.n, test.off, test.device, got, test.want)
		}
	}
}

// TestLocateInvertsExtents asks for random ranges of random trees: a piece must be where the file's extents put it, and
// all pieces of a device must cover what its extents do.
func TestLocateInvertsExtents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tree := drawTree(t, "tree", false)
		l := NewLocator(tree)
		for device, d := range tree.Devices {
			used := make([]bool, d.Size/blockSize)
			_ = tree.Walk(func(_ string, in *Inode) error {
				for _, e := range in.Extents {
					for at := e.DeviceOffset; e.Device == device && at < e.DeviceOffset+e.Length; at += blockSize {
						used[at/blockSize] = true
					}
				}
				return nil
			})
			for page := range used {
				at := int64(page) * blockSize
				pieces := l.Locate(device, at, blockSize)
				if (len(pieces) > 0) != used[page] {
					t.Fatalf("page %d of device %d, used %v: %v", page, device, used[page], pieces)
				}
				for _, p := range pieces {
					in := tree.Lookup(p.Path)
					got := fileBytes(in, p.Offset, p.Length)
					want := make([]byte, blockSize)
					deviceBytes(want, device, at)
					if p.Offset+p.Length > in.Size || !slices.Equal(got, want[:p.Length]) && !strings.Contains(string(want), string(got)) {
						t.Fatalf("page %d of device %d is not %+v", page, device, p)
					}
				}
			}
		}
	})
}

func TestWalkAndLookup(t *testing.T) {
	tree := parseLayer(t, "b/", "b/z", "b/a/", "b/a/x", "a", "b.c")
	var got []string
	err := tree.Walk(func(path string, in *Inode) error {
		if tree.Lookup(path) != in || tree.Lookup("/"+path+"/") != in {
			t.Errorf("Lookup(%q) finds another inode", path)
		}
		got = append(got, path)
		if path == "b/a" {
			return SkipDir
		}
		return nil
	})
	if want := []string{"", "a", "b", "b/a", "b/z", "b.c"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("walk: %q, %v", got, err)
	}
	for _, path := range []string{"c", "a/x", "b/a/x/y", ".", ".."} {
		if in := tree.Lookup(path); in != nil {
			t.Errorf("Lookup(%q) = %v", path, in)
		}
	}
	stop := fmt.Errorf("stop")
	if err := tree.Walk(func(path string, _ *Inode) error {
		if path == "b/a/x" {
			return stop
		}
		return nil
	}); err != stop {
		t.Errorf("walk: %v", err)
	}
}

func TestChunkBits(t *testing.T) {
	const page = blockSize
	for _, test := range []struct {
		size    int64
		extents []Extent
		bits    int
		count   int64
	}{
		{1, []Extent{{0, 1, 0, 0}}, 12, 1},
		{page, []Extent{{0, page, 0, 0}}, 12, 1},
		{page + 1, []Extent{{0, page + 1, 0, page}}, 13, 1},
		{5 << 30, []Extent{{0, 5 << 30, 0, 0}}, 33, 1},
		{5 << 30, nil, 33, 1},
		{5 << 30, []Extent{{4 << 30, 1 << 30, 0, 0}}, 32, 2},
		{100 * page, []Extent{{0, 96 * page, 0, 0}}, 17, 4},
		{100 * page, []Extent{{0, 96 * page, 0, 0}, {97 * page, 3 * page, 0, 0}}, 12, 100},
		{100*page - 7, []Extent{{0, 64 * page, 0, page}, {64 * page, 36*page - 7, 1, 0}}, 18, 2},
		{6 * page, []Extent{{0, 2 * page, 0, 0}, {2 * page, 4 * page, 0, 2 * page}}, 15, 1},
		{1<<63 - 1, nil, 43, 1 << 20},
	} {
		extents := joinExtents(test.extents)
		bits := chunkBitsFor(test.size, extents)
		if count := chunkCount(test.size, bits); bits != test.bits || count != test.count {
			t.Errorf("%d bytes, %v: %d chunks of 2^%d, want %d of 2^%d", test.size, test.extents, count, bits, test.count, test.bits)
		}
		size := max(test.size, 0)
		b := appendChunks(nil, size, bits, extents)
		again, err := decodeChunks(b, size, bits, []Device{{Size: 1 << 40}, {Size: 1 << 40}})
		if err != nil || !slices.Equal(again, extents) {
			t.Errorf("%d bytes, %v: back as %v, %v", test.size, extents, again, err)
		}
	}
}
