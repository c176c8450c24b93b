package stream_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/xylem-project/xylem/blockfmt"
	"github.com/xylem-project/xylem/blockfmt/blocktest"
	"github.com/xylem-project/xylem/tree/stream"
)

// TestImage: the blocks of several blobs have one numbering, both ways.
func TestImage(t *testing.T) {
	a, b := blocktest.NewBlob(1, 100<<10, 16<<10), blocktest.NewBlob(2, 50<<10, 16<<10)
	empty := blocktest.NewBlob(3, 0, 16<<10)
	im, err := stream.NewImage(digest.FromString("m"), 3, a.Index, empty.Index, b.Index)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, blob := range []*blocktest.Blob{a, b} {
		for _, ref := range blob.Refs() {
			if im.Ref(n) != ref || im.Stripe(n) != n%3 {
				t.Errorf("block %d is %v in stripe %d, want %v", n, im.Ref(n), im.Stripe(n), ref)
			}
			if i, ok := im.Find(ref); i != n || !ok {
				t.Errorf("%v is block %d, %v, want %d", ref, i, ok, n)
			}
			n++
		}
	}
	if im.Len() != n {
		t.Errorf("%d blocks, want %d", im.Len(), n)
	}
	wrong := a.Index.Ref(0)
	wrong.Number = 1
	beyond := a.Index.Ref(0)
	beyond.Number = -1
	for _, ref := range []blockfmt.Ref{wrong, beyond, blocktest.NewBlob(4, 1<<10, 1<<10).Index.Ref(0)} {
		if i, ok := im.Find(ref); ok {
			t.Errorf("%v was found as block %d", ref, i)
		}
	}
}

func TestImageIsValidated(t *testing.T) {
	for name, tc := range map[string]struct {
		manifest digest.Digest
		stripes  int
	}{"no digest": {"x", 1}, "no stripes": {digest.FromString("m"), 0}, "many stripes": {digest.FromString("m"), 17}} {
		if _, err := stream.NewImage(tc.manifest, tc.stripes); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConfigs(t *testing.T) {
	if _, err := stream.NewNode(stream.NodeConfig{}); err == nil {
		t.Error("a node without Authorize lets in everybody")
	}
	if _, err := stream.NewNode(stream.NodeConfig{Authorize: anyone, Unit: stream.MaxUnit + 1}); err == nil {
		t.Error("a node may write more at a time than others read")
	}
	for name, cfg := range map[string]stream.HostConfig{
		"no node": {Key: newKey()}, "no key": {Node: newNode(t, stream.NodeConfig{})}, "short key": {Node: newNode(t, stream.NodeConfig{}), Key: newKey()[:10]},
	} {
		if _, err := stream.NewHost(cfg); err == nil {
			t.Errorf("host with %s: no error", name)
		}
	}
	blob := blocktest.NewBlob(1, 1<<10, 1<<10)
	n := newNode(t, stream.NodeConfig{})
	share(t, n, stream.ShareConfig{Image: image(t, blob, 1)})
	if _, err := n.Share(stream.ShareConfig{Image: image(t, blob, 1), Store: new(blocktest.Memory), Source: blob}); err == nil {
		t.Error("an image is shared twice")
	}
}
