package blocktest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
)

func TestTortureLayersAreArchives(t *testing.T) {
	for _, l := range TortureLayers() {
		var first, second bytes.Buffer
		if err := errors.Join(l.Write(&first), l.Write(&second)); err != nil {
			t.Fatalf("%s: %v", l.Name, err)
		}
		if sha256.Sum256(first.Bytes()) != sha256.Sum256(second.Bytes()) {
			t.Errorf("%s differs the second time", l.Name)
		}
		tr, entries := tar.NewReader(&first), 0
		for {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", l.Name, err)
			}
			entries++
			if h.Name == TortureSparse && h.Size != TortureSparseSize {
				t.Errorf("sparse file of %d bytes", h.Size)
			}
		}
		t.Logf("%s: %d entries in %d bytes", l.Name, entries, second.Len())
	}
}
